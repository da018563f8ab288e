"""Planted secrets are searched for in all that a job leaves: its output, Ray's logs, the corpus, MLflow's file."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from canaries import CANARIES, files, leaks, objects

PLANTED = CANARIES | {"RAY_AUTH_TOKEN": "canary0ray0token0" + "4d" * 16}  # the job's own choice

# In a process of its own: what a user types, with a sampler that needs no model, and an MLflow run.
_JOB = """
import sys
from fake_pairs import FakeSampler
from jobs import generate
from jobs import _context
from jobs._cli import Stop, resolve
from pathlib import Path

out, database = sys.argv[1:]
_context.enter(_context.RunContext(stage="generate", log_level="DEBUG"))
overrides = {"out": out, "log_level": "DEBUG", "corpus.num_samples": 16, "corpus.samples_per_shard": 8}
settings = resolve(generate.GenerateSettings, overrides=overrides | {"ray.generate_cpus": 1})
generate.run_with(settings, Stop(), FakeSampler)
import mlflow
mlflow.set_tracking_uri(f"sqlite:///{database}")
with mlflow.start_run():
    mlflow.log_params({"out": out})
"""


def test_a_job_leaves_no_secret_behind(s3_bucket: str, tmp_path: Path) -> None:
    tests = str(Path(__file__).parents[1])
    # Ray's sockets must fit 107 characters: a short folder of our own instead of pytest's.
    with tempfile.TemporaryDirectory(prefix="dk", dir="/tmp", ignore_cleanup_errors=True) as short:
        env = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "MLFLOW_"))} | PLANTED
        env |= {"RAY_TMPDIR": short, "RAY_AUTH_MODE": "token", "HOME": str(tmp_path)}
        env["PYTHONPATH"] = os.pathsep.join([tests, str(Path(tests).parent)])
        job = subprocess.run(
            [sys.executable, "-c", _JOB, f"{s3_bucket}/run", str(tmp_path / "mlflow.db")],
            env=env,
            cwd=tmp_path,
            capture_output=True,
            timeout=300,
        )
        assert job.returncode == 0, job.stderr[-4000:].decode()
        left = {"stdout": job.stdout, "stderr": job.stderr, **files(Path(short)), **files(tmp_path)}
    stored = objects(s3_bucket)
    assert any(name.endswith("manifest.json") for name in stored)
    assert any("/logs/" in name for name in left), "Ray's logs were looked at"
    assert any(name.endswith("mlflow.db") for name in left)
    assert leaks(left | stored, PLANTED) == set()


def test_a_canary_would_be_found(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text(f"started with {CANARIES['AWS_SESSION_TOKEN']}\n")
    assert leaks(files(tmp_path)) == {f"{tmp_path}/a.log: AWS_SESSION_TOKEN"}
