"""The pipeline on a cluster: its stages are jobs that outlive it, and the same command finds them again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from aws_stacks import Roles, beyond_jobs
from canaries import CANARIES, files, leaks, objects
from ray_head import NODE, ROOT, Head
from s3_recorder import Asked, artefacts

from dakter import storage

PROGRESS = '"what": "train", "unit": "steps"'  # said by a training worker, shown by the stage, copied by the pipeline


@contextmanager
def pipeline(head: Head, log: Path, *arguments: str) -> Iterator[subprocess.Popen]:
    """``python jobs/pipeline.py ...`` on a machine that is no part of the cluster."""
    environment = head.environment | {"RAY_ADDRESS": head.dashboard}
    environment |= {name: value for name, value in os.environ.items() if name.startswith(("AWS_", "MLFLOW_TRACKING_"))}
    with open(log, "w") as file:
        process = subprocess.Popen(
            [sys.executable, "jobs/pipeline.py", *arguments], cwd=ROOT, env=environment, stdout=file, stderr=file
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for(text: str, log: Path, process: subprocess.Popen) -> None:
    """Until ``text`` stands in the log."""
    deadline = time.monotonic() + 240
    while text not in log.read_text():
        assert process.poll() is None, log.read_text()[-4000:]
        assert time.monotonic() < deadline, log.read_text()[-4000:]
        time.sleep(0.3)


@pytest.mark.timeout(900)
def test_a_stage_outlives_its_driver_and_is_found_again(
    roles: Roles,
    ray_head: Head,
    s3_bucket: str,
    s3_requests: Asked,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {"AWS_ACCESS_KEY_ID": "operator", **CANARIES}.items():
        monkeypatch.setenv(name, value)
    out = f"{s3_bucket}/runs/run"
    command = ["--preset", "tiny", "--out", out, "--tracking.uri", f"sqlite:///{tmp_path}/mlflow.db"]
    command += ["--train.steps", "100000", "--train.checkpoint_every", "100000", "--log_format", "json"]
    with pipeline(ray_head, tmp_path / "first.log", *command) as first:
        wait_for("-train-1", tmp_path / "first.log", first)
        wait_for(PROGRESS, tmp_path / "first.log", first)
        first.send_signal(signal.SIGKILL)
    before = (tmp_path / "first.log").read_text()

    with pipeline(ray_head, tmp_path / "second.log", *command) as second:
        wait_for("train: attaching to dakter-run-", tmp_path / "second.log", second)
        wait_for(PROGRESS, tmp_path / "second.log", second)
        shown = json.loads(status(ray_head, *command))
        second.send_signal(signal.SIGTERM)
        assert second.wait(180) == 4
    after = (tmp_path / "second.log").read_text()

    states = {row["stage"]: row["state"] for row in shown["stages"]}
    assert (states["prepare"], states["train"], states["generate"]) == ("done", "running", "not done")
    shown = json.loads(status(ray_head, *command))
    assert shown["next"] == "train"
    assert [row["state"] for row in shown["stages"]][:2] == ["done", "stopped"]
    client = ray_head.jobs()
    mine = [job for job in client.list_jobs() if (job.submission_id or "").startswith(f"dakter-{shown['run']}")]
    assert [job.submission_id.rsplit("-", 2)[1:] for job in mine if "train" in job.submission_id] == [["train", "1"]]
    assert any(name.endswith("state.json") for name in storage.sizes(f"{out}/model.checkpoints")), "it stopped cleanly"
    rows = [json.loads(line) for line in (before + after).splitlines() if line.startswith("{")]
    assert {row["run"] for row in rows} == {shown["run"]}
    assert {row["stage"] for row in rows} == {"pipeline", "prepare", "train"}
    assert len({row["done"] for row in rows if row.get("unit") == "steps"}) == sum(
        row.get("unit") == "steps" for row in rows
    ), "no line twice, not even after attaching"

    asked = s3_requests("operator", "node")
    assert artefacts(s3_requests("node"), "runs/run/") >= {"tiles", "model.checkpoints", "submissions", "stages"}
    assert beyond_jobs(asked, roles, s3_bucket) == set()

    own = {"token": ray_head.environment["RAY_AUTH_TOKEN"], "of the node": NODE["AWS_SECRET_ACCESS_KEY"]}
    left = files(tmp_path) | files(ray_head.folder) | objects(s3_bucket) | {"jobs": repr(client.list_jobs()).encode()}
    assert {"first.log", "mlflow.db", "runtime_env_agent.log", f"job-driver-{mine[0].submission_id}.log"} <= {
        name.rsplit("/", 1)[-1] for name in left
    }
    assert leaks(left, CANARIES | own) == set()


def processes() -> Iterator[tuple[int, list[str]]]:
    """Process ids of this machine with the words of their command lines."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                yield int(entry.name), (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")


def status(head: Head, *command: str) -> str:
    """What ``pipeline.py status --json`` prints."""
    environment = head.environment | {"RAY_ADDRESS": head.dashboard}
    environment |= {name: value for name, value in os.environ.items() if name.startswith(("AWS_", "MLFLOW_TRACKING_"))}
    done = subprocess.run(
        [sys.executable, "jobs/pipeline.py", "status", *command, "--json"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_submitted_pipeline_that_is_killed_leaves_its_stage_running(
    ray_head: Head, s3_bucket: str, tmp_path: Path
) -> None:
    client, out = ray_head.jobs(), f"{s3_bucket}/runs/run"
    entrypoint = f"python jobs/pipeline.py --preset tiny --out {out} --tracking.uri sqlite:///{tmp_path}/mlflow.db "
    entrypoint += "--train.steps 100000 --train.checkpoint_every 100000"
    given = {name: os.environ[name] for name in ("AWS_ENDPOINT_URL", "AWS_REGION")}
    environment = {"env_vars": given, "working_dir": str(ROOT)}

    def until(text: str, name: str) -> None:
        deadline = time.monotonic() + 240
        while text not in client.get_job_logs(name):
            assert time.monotonic() < deadline, client.get_job_logs(name)[-4000:]
            time.sleep(1.0)

    first = client.submit_job(entrypoint=entrypoint, runtime_env=environment)
    until(" train] train ", first)
    drivers = [one for one, words in processes() if {out, "jobs/pipeline.py"} <= set(words)]
    assert len(drivers) == 1
    os.kill(drivers[0], signal.SIGKILL)
    second = client.submit_job(entrypoint=entrypoint, runtime_env=environment)
    until("train: attaching to dakter-run-", second)
    (train,) = [one for one in client.list_jobs() if (one.metadata or {}).get("dakter_stage") == "train"]
    assert train.status.value == "RUNNING"
    assert train.runtime_env["working_dir"].startswith("gcs://"), "that of the pipeline's own submission"
    client.stop_job(second)  # Ray gives it three seconds, the stage its own time
    deadline = time.monotonic() + 120
    while client.get_job_status(train.submission_id).value == "RUNNING":
        assert time.monotonic() < deadline
        time.sleep(1.0)
    assert any(name.endswith("state.json") for name in storage.sizes(f"{out}/model.checkpoints")), "it stopped cleanly"
