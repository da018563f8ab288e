"""The spot watcher against a metadata service on loopback, and against a real Ray cluster of two nodes."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from ray_head import ROOT

from infra.spot_watcher import INTERRUPTION, REBALANCE, Metadata, Notice, Raylet, find_raylet, read_notice, watch

NOW = datetime(2026, 11, 24, 8, 0, tzinfo=UTC)
ACTION, ADVICE = "spot/instance-action", "events/recommendations/rebalance"


@dataclass
class Imds:
    """IMDSv2 as EC2 runs it: no answer without a token of its own; 404 where there is no notice."""

    url: str = ""
    notices: dict[str, str] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)
    fail: bool = False
    reads: int = 0


@pytest.fixture
def imds() -> Iterator[Imds]:
    state = Imds()

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            seconds = int(self.headers["X-aws-ec2-metadata-token-ttl-seconds"])
            if self.path != "/latest/api/token" or not 1 <= seconds <= 21600:
                return self.answer(400)
            state.tokens.add(token := secrets.token_hex(8))
            return self.answer(200, token)

        def do_GET(self) -> None:
            state.reads += 1
            if state.fail:
                return self.answer(503)
            if self.headers.get("X-aws-ec2-metadata-token") not in state.tokens:
                return self.answer(401)
            text = state.notices.get(self.path.removeprefix("/latest/meta-data/"))
            return self.answer(404) if text is None else self.answer(200, text)

        def answer(self, status: int, text: str = "") -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    yield state
    server.shutdown()
    server.server_close()


def action(at: datetime) -> str:
    return json.dumps({"action": "terminate", "time": at.strftime("%Y-%m-%dT%H:%M:%SZ")})


def test_no_notice_is_none_and_one_token_serves_many_looks(imds: Imds) -> None:
    metadata = Metadata(imds.url)
    assert [read_notice(metadata) for _ in range(3)] == [None] * 3
    assert len(imds.tokens) == 1


def test_a_token_that_ran_out_is_renewed(imds: Imds) -> None:
    metadata = Metadata(imds.url)
    read_notice(metadata)
    imds.tokens.clear()
    imds.notices[ADVICE] = json.dumps({"noticeTime": "2026-11-24T08:00:00Z"})
    found = read_notice(metadata)
    assert found is not None
    assert found.kind == REBALANCE
    assert len(imds.tokens) == 1


def test_an_interruption_outweighs_a_recommendation(imds: Imds) -> None:
    imds.notices = {ADVICE: "{}", ACTION: action(NOW)}
    assert read_notice(Metadata(imds.url)) == Notice(
        INTERRUPTION, "spot instance: terminate at 2026-11-24T08:00:00Z", NOW
    )


@pytest.mark.parametrize("text", ["", "no json", "[]", '{"action": "terminate", "time": "soon"}'])
def test_a_notice_of_another_form_still_counts(imds: Imds, text: str) -> None:
    imds.notices[ACTION] = text
    found = read_notice(Metadata(imds.url))
    assert found is not None
    assert (found.kind, found.at) == (INTERRUPTION, None)


def test_a_proxy_never_sees_the_token(imds: Imds, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert read_notice(Metadata(imds.url)) is None


def run_watch(imds: Imds, script: list[dict[str, str] | None], refused: int = 0) -> list[tuple[str, int]]:
    """What was drained when each look finds the next entry of ``script``; None: the service fails."""
    drained: list[tuple[str, int]] = []
    steps = iter(script)

    def step(_: float = 0) -> None:
        entry = next(steps)
        imds.fail = entry is None
        imds.notices = entry or {}

    def drain(reason: str, left_s: int) -> bool:
        drained.append((reason, left_s))
        return len(drained) > refused

    step()
    notice = watch(Metadata(imds.url), drain, now=lambda: NOW, sleep=step)
    assert notice.kind == INTERRUPTION
    return drained


def test_the_deadline_is_the_time_that_is_left(imds: Imds) -> None:
    gone = {ACTION: action(NOW + timedelta(seconds=97))}
    assert run_watch(imds, [{}, {}, gone]) == [("spot instance: terminate at 2026-11-24T08:01:37Z", 97)]


def test_a_recommendation_drains_once_and_the_interruption_again(imds: Imds) -> None:
    gone = {ADVICE: '{"noticeTime": "T"}', ACTION: action(NOW - timedelta(seconds=3))}
    drained = run_watch(imds, [{ADVICE: '{"noticeTime": "T"}'}, {ADVICE: '{"noticeTime": "T"}'}, gone])
    assert [left_s for _, left_s in drained] == [600, 0]
    assert drained[0][0] == "rebalance recommendation of T"


def test_a_drain_that_was_refused_is_asked_for_again(imds: Imds) -> None:
    gone = {ACTION: action(NOW + timedelta(seconds=60))}
    assert len(run_watch(imds, [gone, gone, gone], refused=2)) == 3


def test_a_service_that_fails_for_a_while_stops_nothing(imds: Imds) -> None:
    assert len(run_watch(imds, [None, None, {}, {ACTION: action(NOW)}])) == 1


def test_the_raylet_of_this_machine_is_found_by_its_command_line(tmp_path: Path) -> None:
    def process(number: int, *words: str) -> None:
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "cmdline").write_bytes("\0".join([*words, ""]).encode())

    process(1, "/sbin/init")
    process(7, "python", "agent.py", "--node-id=aa", "--gcs-address=10.0.0.1:1")
    with pytest.raises(LookupError, match="0 raylets"):
        find_raylet(tmp_path)
    process(9, "/x/raylet/raylet", "--node_id=bb", "--agent=python --gcs-address=no", "--gcs-address=10.0.0.1:6379")
    assert find_raylet(tmp_path) == Raylet("bb", "10.0.0.1:6379")
    process(11, "/x/raylet/raylet", "--node_id=cc", "--gcs-address=10.0.0.1:6379")
    with pytest.raises(LookupError, match="2 raylets"):
        find_raylet(tmp_path)


# A head, a spot node with a task that runs for three seconds, and what Ray says of that node once it has left.
TWO_NODES = """
import json, sys, time
import ray
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "node_ip_address": "127.0.0.1"})
node = cluster.add_node(num_cpus=1, labels={"ray.io/market-type": "spot"}, node_ip_address="127.0.0.1")
ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")

@ray.remote(num_cpus=1, label_selector={"ray.io/market-type": "spot"})
def work():
    time.sleep(3)
    return "ended as it should"

running = work.remote()
while ray.available_resources().get("CPU", 0):
    time.sleep(0.05)
print(json.dumps({"node_id": node.node_id, "gcs_address": cluster.address}), flush=True)
print(json.dumps({"result": ray.get(running)}), flush=True)
while (left := next(n for n in ray.nodes() if n["NodeID"] == node.node_id))["Alive"]:
    time.sleep(0.05)
print(json.dumps({"reason": left["DeathReasonMessage"]}), flush=True)
ray.shutdown()
cluster.shutdown()
"""


def test_a_real_node_ends_its_work_and_leaves(imds: Imds) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")} | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # every port on loopback, see jobs/_ray.py
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": "",
    }
    with tempfile.TemporaryDirectory(prefix="dk", dir="/tmp", ignore_cleanup_errors=True) as folder:
        cluster = subprocess.Popen(
            [sys.executable, "-c", TWO_NODES],
            env=environment | {"RAY_TMPDIR": folder},
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert cluster.stdout is not None
        try:
            said = json.loads(next(line for line in cluster.stdout if line.startswith("{")))
            command = [sys.executable, str(ROOT / "infra" / "spot_watcher.py"), "--metadata", imds.url]
            command += ["--poll-s", "0.1", "--node-id", said["node_id"], "--gcs-address", said["gcs_address"]]
            watcher = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
            deadline = time.monotonic() + 30
            while imds.reads < 4 and time.monotonic() < deadline:
                time.sleep(0.02)
            assert watcher.poll() is None, "it watches, and does nothing"
            imds.notices[ACTION] = action(datetime.now(UTC) + timedelta(seconds=110))
            _, log = watcher.communicate(timeout=60)
            assert watcher.returncode == 0, log
            assert f"draining node {said['node_id'][:12]}" in log
            told: dict[str, str] = {}
            for line in cluster.stdout:
                told |= json.loads(line) if line.startswith("{") else {}
            assert told["result"] == "ended as it should"
            assert told["reason"].startswith("spot instance: terminate at")
            assert cluster.wait(30) == 0
        finally:
            if cluster.poll() is None:
                os.killpg(cluster.pid, 9)
