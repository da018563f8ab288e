"""Jobs through ``ray job submit`` against a real head, with model and corpus on S3, in both forms."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from aws_stacks import Roles, beyond_jobs
from canaries import CANARIES, leaks, objects
from listeners import watching
from mlflow_server import tracking_server
from ray_head import NODE, ROOT, Head
from s3_recorder import Asked, artefacts
from tiny_model import put_tiny_model

from dakter import storage
from dakter.corpus.reader import CorpusReader
from jobs import pipeline


def documented(bucket: str) -> dict[str, str]:
    """The variables that a user sends along for S3, where nodes have credentials of their own."""
    assert bucket.startswith("s3://")
    return {name: os.environ[name] for name in ("AWS_ENDPOINT_URL", "AWS_REGION")}


@pytest.mark.parametrize("form", ["working-dir", "bare", pytest.param("module", marks=pytest.mark.slow)])
def test_generate_by_job_submit_writes_to_s3(
    form: str, roles: Roles, ray_head: Head, s3_bucket: str, s3_requests: Asked, tmp_path: Path
) -> None:
    out, model = f"{s3_bucket}/runs/run", f"{s3_bucket}/runs/model"
    put_tiny_model(model)
    entrypoint = ["python", "jobs/generate.py", "--out", out, "--paths.model", model]
    entrypoint += ["--sampler.steps", "2", "--sampler.micro_batch", "8", "--sampler.precision", "fp32"]
    entrypoint += ["--corpus.num_samples", "16", "--corpus.samples_per_shard", "8", "--ray.generate_workers", "1"]
    env, sent = documented(s3_bucket), form == "working-dir"
    if form == "module":  # wherever the head was started: its environment holds the project
        entrypoint[1:2] = ["-m", "jobs.generate"]
    if form == "bare":  # the head was started in a checkout, as in an image; keys are sent along
        env |= {"AWS_ACCESS_KEY_ID": "submitted", **CANARIES}
    with watching(ray_head.pid) as seen:
        done = ray_head.submit(*entrypoint, cwd=ROOT if sent else tmp_path, working_dir=sent, env=env)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "generate 16/16 (100 %)" in done.stdout, "progress shows in the job's log"
    reader = CorpusReader(f"{out}/corpus")
    images, soft = reader.sample(list(range(16)))
    assert reader.num_samples == 16
    assert images.shape == (16, 1, 16, 16)
    assert (soft.astype(int).sum(1) == 255).all()
    assert storage.read_json(f"{out}/stages/generate.json")["figures"]["num_samples"] == 16
    assert {listener for listener in seen if listener.outward} == set()
    assert any(listener.command.startswith("ray::") for listener in seen), "its workers were looked at"

    asked = s3_requests("submitted" if form == "bare" else "node")
    assert {request.action for request in asked} == {
        "s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:ListBucket",
    }  # fmt: skip
    assert beyond_jobs(asked, roles, s3_bucket) == set()

    planted = CANARIES | {"of the node": NODE["AWS_SECRET_ACCESS_KEY"]}
    assert leaks({"log": done.stdout.encode()} | objects(s3_bucket), planted) == set()
    warning = f"secrets came with the submission of this job: {', '.join(sorted(CANARIES))}. Ray keeps them"
    assert (warning in done.stdout) == (form == "bare")
    kept = [repr(job) for job in ray_head.jobs().list_jobs() if out in (job.entrypoint or "")]
    assert len(kept) == 1
    assert bool(leaks({"metadata": kept[0].encode()}, planted)) == (form == "bare"), "Ray does keep them, as it warns"


@pytest.mark.slow
def test_a_job_that_fails_says_so(ray_head: Head, s3_bucket: str) -> None:
    done = ray_head.submit(
        "python",
        "jobs/generate.py",
        "--out",
        f"{s3_bucket}/runs/none",
        cwd=ROOT,
        working_dir=True,
        env=documented(s3_bucket),
    )
    assert done.returncode == 1
    assert f"{s3_bucket}/runs/none/model" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("form", ["working-dir", "bare"])
def test_every_job_by_job_submit_on_s3_with_a_tracking_server(
    form: str, roles: Roles, ray_head: Head, s3_bucket: str, s3_requests: Asked, tmp_path: Path
) -> None:
    """The stages one by one, then the pipeline, which submits them again and finds them done, and writes the report."""
    out = f"{s3_bucket}/runs/run"
    with tracking_server(tmp_path) as uri:
        known = documented(s3_bucket) | {"MLFLOW_TRACKING_URI": uri}
        for job in (*pipeline.STAGES, pipeline.JOB):
            entrypoint = ["python", f"jobs/{job.name}.py", "--preset", "tiny", "--out", out]
            where, sent = (ROOT, True) if form == "working-dir" else (tmp_path, False)
            done = ray_head.submit(*entrypoint, cwd=where, working_dir=sent, env=known)
            refused = job.name == "promote" and done.returncode == 1
            assert done.returncode == 0 or refused, done.stdout[-4000:] + done.stderr[-2000:]
            assert leaks({"log": done.stdout.encode()}, {"of the node": NODE["AWS_SECRET_ACCESS_KEY"]}) == set()
    decision = storage.read_json(f"{out}/promotion/decision.json")
    assert decision["reasons"], "what was decided stands in a file, since a submitted job shows only 0 or 1"
    assert storage.exists(f"{out}/report/report.html")
    ids = {storage.read_json(f"{out}/stages/{job.name}.json")["run"] for job in pipeline.STAGES}
    assert ids == {storage.read_json(f"{out}/run.json")["run"]}
    asked = s3_requests("node")
    assert artefacts(asked, "runs/run/") >= {
        "tiles", "model", "model.checkpoints", "corpus", "labelled", "sweep",
        "evaluation", "promotion", "report", "stages",
    }  # fmt: skip
    assert beyond_jobs(asked, roles, s3_bucket) == set()
