"""A job's own process, joined to a cluster of raylets on this machine, and what tests watch of both."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from jobs._cli import JobSettings
from jobs.suites._raylets import Cluster, Node

T = TypeVar("T")


@dataclass(frozen=True)
class JoinedJob:
    """``python jobs/NAME.py`` at work in the folder ``out``."""

    process: subprocess.Popen
    out: Path

    def log(self) -> str:
        """What it and its workers have said."""
        return (self.out / "log").read_text()

    def said(self, pattern: str) -> bool:
        """Whether what matches ``pattern`` stands in its log."""
        return re.search(pattern, self.log()) is not None

    def until(self, ready: Callable[[], T]) -> T:
        """Wait, while it runs, until ``ready`` returns something true."""
        deadline = time.monotonic() + 180
        while not (found := ready()):
            assert self.process.poll() is None, self.log()[-3000:]
            assert time.monotonic() < deadline, self.log()[-3000:]
            time.sleep(0.05)
        return found

    def ended(self) -> int:
        """Wait for its end; returns its exit status."""
        return self.process.wait(240)


def join(made: Cluster, name: str, settings: JobSettings) -> JoinedJob:
    """Start a job that joins the cluster."""
    out = Path(settings.out)
    out.mkdir()
    (out / "settings.yaml").write_text(settings.to_yaml())
    command = [sys.executable, f"jobs/{name}.py", "--config", str(out / "settings.yaml")]
    with open(out / "log", "wb") as log:
        process = subprocess.Popen(command, cwd=Path(__file__).parents[1], env=made.env, stdout=log, stderr=log)
    return JoinedJob(process, out)


def node_with(made: Cluster, title: str) -> Node:
    """A node, the latest of several, with a process of Ray's whose title begins with ``title``."""
    found = [node for node in made.nodes.values() if any(command.startswith(title) for command in node.pids().values())]
    assert found, {name: list(node.pids().values()) for name, node in made.nodes.items()}
    return found[-1]
