"""A model that somebody logged as a pickle is not opened once dakter.tracking is in use, whatever was set before."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_LOG = """
import sys, mlflow, torch
mlflow.set_tracking_uri(sys.argv[1])
with mlflow.start_run():
    print(mlflow.pytorch.log_model(torch.nn.Linear(2, 2), name="m", serialization_format="pickle").model_uri)
"""
_LOAD = """
import sys
from dakter import tracking
mlflow = tracking._mlflow()
mlflow.set_tracking_uri(sys.argv[1])
try:
    mlflow.pytorch.load_model(sys.argv[2])
except mlflow.exceptions.MlflowException as error:
    print("refused:", error)
else:
    print("opened")
"""


def run(code: str, *arguments: str, folder: Path) -> str:
    env = {**os.environ, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "true", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=True).stdout.strip()


def test_a_pickled_model_is_refused_by_tracking(tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path}/mlflow.db"
    uri = run(_LOG, database, folder=tmp_path).splitlines()[-1]
    told = run(_LOAD, database, uri, folder=tmp_path)
    assert "refused:" in told, told
    assert "pickle" in told.lower()
