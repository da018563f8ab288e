"""Jobs through ``ray job submit`` against a real head, with model and corpus on S3, in both forms."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from mlflow_server import tracking_server
from ray_head import ROOT, Head
from tiny_model import put_tiny_model

from dakter import storage
from dakter.corpus.reader import CorpusReader
from jobs import pipeline


def documented(bucket: str) -> dict[str, str]:
    """The variables that a user sets for S3; nothing else of this process's environment goes with a job."""
    assert bucket.startswith("s3://")
    names = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION")
    return {name: os.environ[name] for name in names}


@pytest.mark.parametrize("form", ["working-dir", "bare", pytest.param("module", marks=pytest.mark.slow)])
def test_generate_by_job_submit_writes_to_s3(form: str, ray_head: Head, s3_bucket: str, tmp_path: Path) -> None:
    put_tiny_model(f"{s3_bucket}/model")
    entrypoint = ["python", "jobs/generate.py", "--out", f"{s3_bucket}/run", "--paths.model", f"{s3_bucket}/model"]
    entrypoint += ["--sampler.steps", "2", "--sampler.micro_batch", "8", "--sampler.precision", "fp32"]
    entrypoint += ["--corpus.num_samples", "16", "--corpus.samples_per_shard", "8", "--ray.generate_workers", "1"]
    if form == "working-dir":
        done = ray_head.submit(*entrypoint, cwd=ROOT, working_dir=True, env=documented(s3_bucket))
    elif form == "module":  # wherever the head was started: its environment holds the project
        entrypoint[1:2] = ["-m", "jobs.generate"]
        done = ray_head.submit(*entrypoint, cwd=tmp_path, working_dir=False, env=documented(s3_bucket))
    else:  # the head was started in a checkout, as in an image whose working folder is one
        done = ray_head.submit(*entrypoint, cwd=tmp_path, working_dir=False, env=documented(s3_bucket))
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "generate 16/16 (100 %)" in done.stdout, "progress shows in the job's log"
    reader = CorpusReader(f"{s3_bucket}/run/corpus")
    images, soft = reader.sample(list(range(16)))
    assert reader.num_samples == 16
    assert images.shape == (16, 1, 16, 16)
    assert (soft.astype(int).sum(1) == 255).all()
    assert storage.read_json(f"{s3_bucket}/run/stages/generate.json")["figures"]["num_samples"] == 16
    assert "testing" not in done.stdout.replace("dakter-testing", ""), "no credential in the job's log"


@pytest.mark.slow
def test_a_job_that_fails_says_so(ray_head: Head, s3_bucket: str) -> None:
    done = ray_head.submit(
        "python",
        "jobs/generate.py",
        "--out",
        f"{s3_bucket}/none",
        cwd=ROOT,
        working_dir=True,
        env=documented(s3_bucket),
    )
    assert done.returncode == 1
    assert f"{s3_bucket}/none/model" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("form", ["working-dir", "bare"])
def test_every_job_by_job_submit_on_s3_with_a_tracking_server(
    form: str, ray_head: Head, s3_bucket: str, tmp_path: Path
) -> None:
    """The stages one by one, then the pipeline, which submits them again and finds them done, and writes the report."""
    with tracking_server(tmp_path) as uri:
        known = documented(s3_bucket) | {"MLFLOW_TRACKING_URI": uri}
        for job in (*pipeline.STAGES, pipeline.JOB):
            entrypoint = ["python", f"jobs/{job.name}.py", "--preset", "tiny", "--out", f"{s3_bucket}/run"]
            where, sent = (ROOT, True) if form == "working-dir" else (tmp_path, False)
            done = ray_head.submit(*entrypoint, cwd=where, working_dir=sent, env=known)
            refused = job.name == "promote" and done.returncode == 1
            assert done.returncode == 0 or refused, done.stdout[-4000:] + done.stderr[-2000:]
            assert "testing" not in done.stdout.replace("dakter-testing", ""), "no credential in a job's log"
    decision = storage.read_json(f"{s3_bucket}/run/promotion/decision.json")
    assert decision["reasons"], "what was decided stands in a file, since a submitted job shows only 0 or 1"
    assert storage.exists(f"{s3_bucket}/run/report/report.html")
    ids = {storage.read_json(f"{s3_bucket}/run/stages/{job.name}.json")["run"] for job in pipeline.STAGES}
    assert ids == {storage.read_json(f"{s3_bucket}/run/run.json")["run"]}
