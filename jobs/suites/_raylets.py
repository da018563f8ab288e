"""A Ray cluster of several nodes on this machine, each with a HOME, a TMPDIR and a disk folder of its own.

A node is a session of processes (setsid): losing it is SIGKILL to every one of them, as when a machine vanishes. All
listen on loopback alone, guarded by a token.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dakter.errors import StorageError
from jobs.suites._chaos_sampler import NODE_VARIABLE

_ROOT = Path(__file__).parents[2]
_OBJECT_STORE_BYTES = 80_000_000  # the least that Ray accepts: rows of a few bytes are all that travels
# A node that is gone refuses the check at once and is lost within 3 s (18 s by default); a slow one is given time.
_HEALTH = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "10000",
    "RAY_health_check_failure_threshold": "5",
}


def free_port() -> int:
    """A port of loopback outside Ray's own worker range."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if not 10002 <= port <= 19999:
            return port


@dataclass
class Node:
    """One node: its name, its folder (``home``, ``disk`` = TMPDIR, ``r`` = Ray's files), its first process."""

    name: str
    folder: Path
    process: subprocess.Popen
    num_cpus: int
    mounted: bool = False

    @property
    def disk(self) -> Path:
        return self.folder / "disk"

    def pids(self) -> dict[int, str]:
        """Every living process of the node: pid -> command line."""
        return _processes(self.process.pid)

    def actors(self) -> list[int]:
        """Pids of the sampling actors that live here."""
        return [pid for pid, command in self.pids().items() if command.startswith("ray::MapWorker")]

    def node_id(self) -> str | None:
        """Ray's hex id of the node; None before its raylet is up."""
        for command in self.pids().values():
            if "/raylet/raylet " in command and "--node_id=" in command:
                return command.partition("--node_id=")[2].split(" ")[0]
        return None

    def kill(self) -> None:
        """SIGKILL to all of it, again until nothing is left."""
        while found := self.pids():
            for pid in found:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(0.2)
        if self.mounted:
            subprocess.run(["umount", "-l", str(self.disk)], check=False, capture_output=True)
            self.mounted = False
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass
class Cluster:
    """A head without CPUs of its own, where drivers join, and nodes that come and go.

    Attributes:
        env: environment of drivers that join (RAY_ADDRESS and the token included).
    """

    folder: Path
    env: dict[str, str]
    head: Node
    nodes: dict[str, Node] = field(default_factory=dict)
    _made: int = 0

    def add(self, *, num_cpus: int = 2, disk_bytes: int | None = None, wait: bool = True) -> Node:
        """Start one more node.

        Args:
            disk_bytes: size of its disk, a tmpfs; None: a folder. Without the right to mount it is a folder too,
                see ``Node.mounted``.
            wait: until it has joined.
        """
        self._made += 1
        name = f"n{self._made}"
        node = _start(self.folder / name, self.env, ["--address", self.env["RAY_ADDRESS"]], num_cpus, disk_bytes)
        self.nodes[name] = node
        if wait:
            _wait_until_up(node)
        return node

    def lose(self, node: Node) -> int:
        """SIGKILL a node; returns how many sampling actors it had."""
        del self.nodes[node.name]
        actors = len(node.actors())
        node.kill()
        return actors

    def drain(self, node: Node, deadline_s: int) -> subprocess.Popen:
        """Tell Ray that the node will be taken away, as a spot notice does; whoever calls takes it away afterwards.

        Returns:
            The command at work: it takes seconds. Status 0: the notice is given.
        """
        command = [sys.executable, "-m", "jobs.suites._loopback_ray", "drain-node", "--node-id", str(node.node_id())]
        command += ["--address", self.env["RAY_ADDRESS"], "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
        command += ["--reason-message", "spot notice", "--deadline-remaining-seconds", str(deadline_s)]
        with open(node.folder / "drain.log", "ab") as log:
            return subprocess.Popen(command, cwd=_ROOT, env=self.env, stdout=log, stderr=subprocess.STDOUT)

    def close(self) -> None:
        """End all nodes."""
        for node in [*self.nodes.values(), self.head]:
            node.kill()


def growing(folder: Path, port: int, node_types: Mapping[str, Any]) -> tuple[list[str], dict[str, str]]:
    """Options and environment of a head whose autoscaler (Ray's v2) starts nodes on this machine by itself.

    They come from the provider that Ray tests its autoscaler with: real raylets with pretended resources, gone again
    after 12 s without work.

    Args:
        folder: where the autoscaler's configuration is written.
        port: of the head.
        node_types: as ``available_node_types`` of a cluster file, without the head's.
    """
    head = "f" * 51 + "00000"
    config: dict[str, Any] = {
        "cluster_name": "growing",
        "max_workers": sum(node_type["max_workers"] for node_type in node_types.values()),
        "upscaling_speed": 100,
        "idle_timeout_minutes": 0.2,
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "launch_multiple": True,
            "head_node_id": head,
            "gcs_address": f"127.0.0.1:{port}",
        },
        "head_node_type": "ray.head.default",
        "available_node_types": {
            **node_types,
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        },
    }
    # Ray demands these of an external provider, though nothing is set up.
    commands = ("", "head_", "worker_")
    config |= {f"{whose}setup_commands": [] for whose in commands} | {"initialization_commands": [], "file_mounts": {}}
    config |= {"head_start_ray_commands": [], "worker_start_ray_commands": [], "cluster_synced_files": []}
    config |= {"auth": {}, "docker": {}, "file_mounts_sync_continuously": False}
    where = folder / "autoscaling.json"
    where.write_text(json.dumps(config))
    env = {
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": head,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": head,
    }
    return ["--autoscaling-config", str(where)], env


@contextmanager
def cluster(
    env: dict[str, str], num_nodes: int, *, num_cpus: int = 2, node_types: Mapping[str, Any] | None = None
) -> Iterator[Cluster]:
    """A running cluster of a head and ``num_nodes`` nodes; ``env`` is what all its processes and drivers see.

    Args:
        node_types: what its autoscaler may start by itself, see ``growing``; None: it has none.
    """
    # Ray's sockets must fit 107 characters: a short folder.
    folder = Path(tempfile.mkdtemp(prefix="dk", dir="/tmp"))
    port = free_port()
    ours = {key: value for key, value in env.items() if not key.startswith(("RAY_", "MLFLOW_"))} | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_DEDUP_LOGS": "0",  # every line of every worker is in its driver's log, where retries are counted
        "OMP_NUM_THREADS": "1",
        **_HEALTH,
    }
    options = ["--head", "--port", str(port), "--include-dashboard", "false"]
    options += ["--ray-client-server-port", str(free_port())]
    more, only_head = growing(folder, port, node_types) if node_types else ([], {})
    head = _start(folder / "head", ours | only_head, options + more, 0, None)
    made = Cluster(folder, {**ours, "RAY_ADDRESS": f"127.0.0.1:{port}"}, head)
    try:
        _wait_until_up(head)
        for node in [made.add(num_cpus=num_cpus, wait=False) for _ in range(num_nodes)]:
            _wait_until_up(node)
        yield made
    finally:
        made.close()
        shutil.rmtree(folder, ignore_errors=True)


def _start(folder: Path, env: dict[str, str], options: list[str], num_cpus: int, disk_bytes: int | None) -> Node:
    name = folder.name
    for part in ("home", "disk"):
        (folder / part).mkdir(parents=True)
    mounted = False
    if disk_bytes is not None and os.geteuid() == 0:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={disk_bytes}", "tmpfs", str(folder / "disk")]
        mounted = subprocess.run(mount, check=False, capture_output=True).returncode == 0
    command = [sys.executable, "-m", "jobs.suites._loopback_ray", "start", "--block", "--node-ip-address", "127.0.0.1"]
    command += ["--num-cpus", str(num_cpus), "--temp-dir", str(folder / "r")]
    command += ["--object-store-memory", str(_OBJECT_STORE_BYTES)]
    # Fixed ranges of worker ports would collide between the nodes of one machine.
    command += ["--min-worker-port", "0", "--max-worker-port", "0", "--dashboard-agent-listen-port", "0"]
    own = {"HOME": str(folder / "home"), "TMPDIR": str(folder / "disk"), NODE_VARIABLE: name}
    with open(folder / "log", "ab") as log:
        process = subprocess.Popen(
            [*command, "--disable-usage-stats", *options],
            cwd=_ROOT,
            env={key: value for key, value in env.items() if key != "RAY_ADDRESS"} | own,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Node(name, folder, process, num_cpus, mounted)


def _wait_until_up(node: Node, timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    log = node.folder / "log"
    while "Ray runtime started" not in log.read_text():
        if node.process.poll() is not None or time.monotonic() > deadline:
            raise StorageError(
                f"Ray's node {node.name} did not start within {timeout_s:g} s: {log.read_text()[-2000:]}"
            )
        time.sleep(0.2)


def _processes(session: int) -> dict[int, str]:
    """Living processes of a session, from /proc: their process groups differ, the session is one."""
    found = {}
    for path in Path("/proc").iterdir():
        if not path.name.isdigit():
            continue
        with suppress(OSError):
            # pid (name with any character) state ppid pgrp session ...
            fields = (path / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found[int(path.name)] = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return found
