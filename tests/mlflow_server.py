"""A real MLflow server on loopback with SQLite behind it, its database migrated once before it starts."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jobs.suites._raylets import free_port


@contextmanager
def tracking_server(folder: Path) -> Iterator[str]:
    """Its address; database, artifacts and log are kept in ``folder``."""
    port, database = free_port(), f"sqlite:///{folder}/mlflow.db"
    mlflow = [sys.executable, "-m", "mlflow"]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    stores = ["--backend-store-uri", database, "--artifacts-destination", f"{folder}/artifacts"]
    command = [*mlflow, "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1", *stores]
    with open(folder / "mlflow.log", "wb") as log:
        subprocess.run(
            [*mlflow, "db", "upgrade", database], env=environment, stdout=log, stderr=log, cwd=folder, check=True
        )
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder)
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, (folder / "mlflow.log").read_text()
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)
