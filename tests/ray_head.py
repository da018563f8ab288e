"""A real Ray head on loopback, as an operator starts one, and the command line that talks to it."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.suites._raylets import free_port

ROOT = Path(__file__).parents[1]
# What nodes have of themselves, as a role gives it: no submission brings it along.
NODE = {"AWS_ACCESS_KEY_ID": "node", "AWS_SECRET_ACCESS_KEY": "canary-of-the-node-3c1f"}


@dataclass(frozen=True)
class Head:
    """A running head: its dashboard, the environment that reaches it, its first process, and Ray's files."""

    dashboard: str
    environment: dict[str, str]
    pid: int
    folder: Path

    def jobs(self) -> Any:
        """The client of its job server."""
        from ray.job_submission import JobSubmissionClient

        token = self.environment["RAY_AUTH_TOKEN"]
        return JobSubmissionClient(self.dashboard, headers={"Authorization": f"Bearer {token}"})

    def submit(
        self, *entrypoint: str, cwd: Path, working_dir: bool, env: dict[str, str]
    ) -> subprocess.CompletedProcess:
        """``ray job submit [--working-dir .] -- ENTRYPOINT`` from ``cwd``; ``env`` goes with the job."""
        import json

        command = [str(Path(sys.executable).parent / "ray"), "job", "submit", "--address", self.dashboard]
        command += ["--runtime-env-json", json.dumps({"env_vars": env})]
        command += ["--working-dir", "."] if working_dir else []
        return subprocess.run(
            [*command, "--", *entrypoint],
            cwd=cwd,
            env=self.environment,
            text=True,
            timeout=600,
            capture_output=True,
            check=False,
        )


def start_head() -> Iterator[Head]:
    """``ray start --head`` from the checkout, in its own process group, guarded by a token, on loopback alone."""
    port, dashboard_port = free_port(), free_port()
    bin_folder = str(Path(sys.executable).parent)
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "RAY_", "MLFLOW_"))}
    environment = clean | {
        "PATH": f"{bin_folder}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # every port on loopback, see jobs/_ray.py
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    }
    # Ray's sockets must fit 107 characters: a short folder of our own instead of pytest's.
    with tempfile.TemporaryDirectory(prefix="dk", dir="/tmp", ignore_cleanup_errors=True) as folder:
        log = open(Path(folder) / "head.log", "w")  # noqa: SIM115  (closed below, after the process)
        process = subprocess.Popen(
            [
                f"{bin_folder}/ray",
                "start",
                "--head",
                "--block",
                "--node-ip-address",
                "127.0.0.1",
                "--port",
                str(port),
                "--dashboard-host",
                "127.0.0.1",
                "--dashboard-port",
                str(dashboard_port),
                "--ray-client-server-port",
                str(free_port()),
                # Jobs are submitted through this agent: at its usual port it would be in the way of another Ray's.
                "--dashboard-agent-listen-port",
                str(free_port()),
                "--num-cpus",
                "6",
                "--temp-dir",
                folder,
                "--disable-usage-stats",
            ],
            cwd=ROOT,
            env=environment | NODE,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", dashboard_port)) == 0:
                    break
            assert process.poll() is None, (Path(folder) / "head.log").read_text()
            time.sleep(0.5)
        try:
            yield Head(f"http://127.0.0.1:{dashboard_port}", environment, process.pid, Path(folder))
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
            log.close()
