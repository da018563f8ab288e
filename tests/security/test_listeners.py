"""Nothing listens beyond loopback unless it is told to: Ray, MLflow's server, and what stands in for S3."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from listeners import listeners, outward, tree
from mlflow_server import tracking_server
from ray_head import ROOT

from jobs.suites import _moto
from jobs.suites._fault_proxy import Proxy

# A child of a child that listens, within a shell that waits for it.
_LISTEN = """
import socket, sys, time
found = []
for host in sys.argv[1:]:
    found.append(socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET))
    found[-1].bind((host, 0))
    found[-1].listen()
print(*[one.getsockname()[1] for one in found], flush=True)
time.sleep(60)
"""


def test_a_listener_is_seen_with_its_address_wherever_it_is_in_the_tree() -> None:
    hosts = ["127.0.0.1", "127.0.0.2", "0.0.0.0", "::1", "::", "::ffff:127.0.0.1"]
    shell = subprocess.Popen(
        ["sh", "-c", '"$0" "$@"; true', sys.executable, "-c", _LISTEN, *hosts], stdout=subprocess.PIPE, text=True
    )
    try:
        assert shell.stdout is not None
        ports = [int(word) for word in shell.stdout.readline().split()]
        assert len(tree(shell.pid)) == 2
        found = {listener.port: listener for listener in listeners(tree(shell.pid))}
        assert [found[port].address for port in ports] == [*hosts[:-1], "::ffff:7f00:1"]
        assert {listener.port for listener in outward(shell.pid)} == {ports[2], ports[4]}
        assert listeners({shell.pid}) == set(), "it is another process of the tree that listens"
        assert found[ports[0]].command.startswith(sys.executable)
    finally:
        for pid in tree(shell.pid) - {os.getpid()}:
            os.kill(pid, 9)
        shell.wait()


# In a process of its own, as a job is: Ray settles on a way to authenticate once for the life of a process.
_SESSION = """
import sys
if "imported" in sys.argv: import ray
from jobs._ray import RayConfig, session
with session(RayConfig()) as ray:
    assert ray.get(ray.remote(lambda: 1).remote()) == 1
    print("up", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("before", ["nothing", "imported"])
def test_a_ray_that_a_job_starts_listens_on_loopback_alone(before: str) -> None:
    env = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    if before == "imported":  # with its way to authenticate; its switch for loopback it has read as well, then
        env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": os.environ["RAY_AUTH_TOKEN"]}
    job = subprocess.Popen(
        [sys.executable, "-c", _SESSION, before],
        cwd=ROOT,
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert job.stdout is not None
    assert any(line.strip() == "up" for line in job.stdout)
    found = listeners(tree(job.pid))
    job.communicate()
    assert job.returncode == 0
    commands = " ".join(listener.command for listener in found)
    assert all(part in commands for part in ("gcs_server", "raylet", "dashboard", "Agent")), commands
    assert {listener for listener in found if listener.outward} == set()


def test_servers_of_the_tests_and_suites_listen_on_loopback_alone(
    s3_server: str, fault_proxy: Proxy, tmp_path: Path
) -> None:
    with tracking_server(tmp_path) as tracking, _moto.bucket():
        urls = [s3_server, fault_proxy.url, tracking, os.environ["AWS_ENDPOINT_URL"]]
        found = listeners(tree())
    assert {urlsplit(url).port for url in urls} <= {listener.port for listener in found}
    assert {listener for listener in found if listener.outward} == set()


# Where something is told to listen on every interface of its container, and what keeps others out.
TOLD = {
    "infra/mlflow.yaml": "a security group that lets the cluster's nodes in",
    "infra/kuberay/raycluster.yaml": "namespace.yaml's NetworkPolicy, and the token",
    "infra/kuberay/rayjob.yaml": "namespace.yaml's NetworkPolicy, and the token",
}


def test_nothing_else_is_told_to_listen_everywhere() -> None:
    sources = [ROOT / "ray_cluster.yaml", ROOT / "Makefile"]
    sources += [path for folder in ("dakter", "jobs", "infra") for path in (ROOT / folder).rglob("*") if path.is_file()]
    texts = {str(path.relative_to(ROOT)): path.read_bytes() for path in sources if path.suffix not in (".pyc", ".md")}
    every = re.compile(rb"0\.0\.0\.0(?!/)|[\"']::[\"']")
    assert {name for name, text in texts.items() if every.search(text)} == set(TOLD)
