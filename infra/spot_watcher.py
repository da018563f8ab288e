"""Watches for the notices that EC2 gives before it takes a spot instance back, and drains this Ray node.

Open-source Ray has no such watcher on AWS. It runs beside the raylet on every worker (see ray_cluster.yaml):

- ``spot/instance-action`` (about two minutes ahead): the node is drained with the time left as its deadline, and the
  watcher's work is done;
- ``events/recommendations/rebalance`` (earlier, a risk and no certainty): the node is drained once with a longer
  deadline, so that running work may end there and new work starts elsewhere.

A drained node takes no new work; its tasks end, a trainer is told (``get_preemption_info``), and the raylet leaves
when it is idle. Only the standard library and the ``ray`` command are used: a node in trouble should not need more.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

log = logging.getLogger("dakter.spot_watcher")

METADATA = "http://169.254.169.254"
INTERRUPTION, REBALANCE = "interruption", "rebalance"
_TOKEN_TTL_S = 21600  # six hours, the longest that IMDSv2 grants


class Metadata:
    """The instance metadata service, version 2 alone: each read carries a session token.

    Args:
        endpoint: where it listens.
        timeout_s: longest wait for one answer; the service is on the same machine.
    """

    def __init__(self, endpoint: str = METADATA, timeout_s: float = 2.0):
        self._endpoint, self._timeout_s = endpoint.rstrip("/"), timeout_s
        self._token: str | None = None

    def read(self, path: str) -> str | None:
        """The text of a category, or None if there is none (404); raises OSError if the service does not answer."""
        for renewed in (False, True):
            if self._token is None:
                ttl = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_TTL_S)}
                self._token = self._ask("PUT", "/latest/api/token", ttl)
            try:
                return self._ask("GET", f"/latest/meta-data/{path}", {"X-aws-ec2-metadata-token": self._token})
            except urllib.error.HTTPError as error:
                if error.code == 404:
                    return None
                if error.code != 401 or renewed:  # 401: the token ran out; one new one is tried
                    raise
                self._token = None
        raise AssertionError("unreachable: the second round returns or raises")

    def _ask(self, method: str, path: str, headers: Mapping[str, str]) -> str:
        request = urllib.request.Request(self._endpoint + path, method=method, headers=dict(headers))
        # No proxy, whatever the environment says: the token must not leave the machine.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=self._timeout_s) as answer:
            return str(answer.read().decode())


@dataclass(frozen=True)
class Notice:
    """What EC2 announced.

    Attributes:
        kind: ``interruption`` or ``rebalance``.
        detail: for people, and for Ray's record of why the node left.
        at: when the instance goes (UTC); None if that is not known.
    """

    kind: str
    detail: str
    at: datetime | None = None


def read_notice(metadata: Metadata) -> Notice | None:
    """The weightier of the notices that stand, or None; raises OSError if the service does not answer."""
    text = metadata.read("spot/instance-action")
    if text is not None:
        action = _json(text)
        return Notice(
            INTERRUPTION,
            f"spot instance: {action.get('action', 'taken back')} at {action.get('time', '?')}",
            _time(action.get("time")),
        )
    text = metadata.read("events/recommendations/rebalance")
    if text is not None:
        return Notice(REBALANCE, f"rebalance recommendation of {_json(text).get('noticeTime', '?')}")
    return None


def _json(text: str) -> dict[str, Any]:
    """The document, or an empty one if EC2's form has changed: the notice itself still counts."""
    try:
        document = json.loads(text)
    except ValueError:
        log.warning("a notice that is no JSON: %r", text[:200])
        return {}
    return document if isinstance(document, dict) else {}


def _time(text: Any) -> datetime | None:
    try:
        parsed = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


def watch(
    metadata: Metadata,
    drain: Callable[[str, int], bool],
    *,
    poll_s: float = 5.0,
    rebalance_s: int = 600,
    interruption_s: int = 120,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
    sleep: Callable[[float], None] = time.sleep,
) -> Notice:
    """Poll until the instance is to be taken back and its node is drained; return that notice.

    Args:
        drain: called with a reason and the seconds that are left; False asks to be called again.
        poll_s: seconds between two looks; AWS advises five.
        rebalance_s: deadline given to a node of which only a rebalance is recommended.
        interruption_s: deadline if the notice names no time.
        now, sleep: the clock.
    """
    rebalanced = silent = False
    while True:
        try:
            notice = read_notice(metadata)
            if silent:
                log.info("the metadata service answers again")
            silent = False
        except OSError as error:  # URLError and timeouts are OSErrors
            if not silent:
                log.warning("the metadata service does not answer (%s); asking on", error)
            notice, silent = None, True
        if notice is not None and notice.kind == INTERRUPTION:
            left_s = interruption_s if notice.at is None else max(0, int((notice.at - now()).total_seconds()))
            if drain(notice.detail, left_s):
                return notice
        elif notice is not None and not rebalanced:
            rebalanced = drain(notice.detail, rebalance_s)
        sleep(poll_s)


@dataclass(frozen=True)
class Raylet:
    """The raylet of this machine: hex id of its node, and host:port of the cluster's GCS."""

    node_id: str
    gcs_address: str


def find_raylet(proc: Path = Path("/proc")) -> Raylet:
    """The one raylet that runs on this machine, from its command line; raises LookupError if there is not just one."""
    found = []
    for file in proc.glob("[0-9]*/cmdline"):
        try:
            words = file.read_bytes().decode(errors="replace").split("\0")
        except OSError:  # ended meanwhile
            continue
        if os.path.basename(words[0]) != "raylet":
            continue
        options = dict(word.lstrip("-").split("=", 1) for word in words[1:] if word.startswith("--") and "=" in word)
        if "node_id" in options and "gcs-address" in options:
            found.append(Raylet(options["node_id"], options["gcs-address"]))
    if len(found) != 1:
        raise LookupError(f"{len(found)} raylets run here; expected one (else give --node-id and --gcs-address)")
    return found[0]


def drain_node(raylet: Raylet, reason: str, left_s: int, *, timeout_s: float = 30.0) -> bool:
    """Tell Ray that the node will be gone in ``left_s`` seconds; whether Ray accepted."""
    command = [str(Path(sys.executable).parent / "ray"), "drain-node", "--address", raylet.gcs_address]
    command += ["--node-id", raylet.node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", reason]
    command += ["--deadline-remaining-seconds", str(left_s)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        log.error("ray drain-node: %s", error)
        return False
    if done.returncode:
        log.error("ray drain-node: exit status %d: %s", done.returncode, (done.stderr or done.stdout)[-500:])
    return done.returncode == 0


def main(arguments: list[str] | None = None) -> None:
    """Command line; ends after the node was drained for good."""
    parser = argparse.ArgumentParser(description="Drain this Ray node when EC2 announces to take the instance back.")
    parser.add_argument("--metadata", default=METADATA, help="metadata service (default: %(default)s)")
    parser.add_argument("--poll-s", type=float, default=5.0, help="seconds between two looks (default: %(default)s)")
    parser.add_argument("--rebalance-s", type=int, default=600, help="deadline at a rebalance (default: %(default)s)")
    parser.add_argument("--node-id", help="hex id of the node (default: that of the one raylet on this machine)")
    parser.add_argument("--gcs-address", help="host:port of the GCS (default: as that raylet has it)")
    options = parser.parse_args(arguments)
    if bool(options.node_id) != bool(options.gcs_address):
        parser.error("--node-id and --gcs-address go together")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")

    drained = False

    def drain(reason: str, left_s: int) -> bool:
        nonlocal drained
        try:
            raylet = Raylet(options.node_id, options.gcs_address) if options.node_id else find_raylet()
        except LookupError as error:
            if drained:  # at the rebalance recommendation; its raylet has left since
                return True
            log.error("%s; not drained: %s", error, reason)
            return False
        log.warning("%s: draining node %s, %d s are left", reason, raylet.node_id[:12], left_s)
        drained = drain_node(raylet, reason, left_s) or drained
        return drained

    log.info("watching %s", options.metadata)
    watch(Metadata(options.metadata), drain, poll_s=options.poll_s, rebalance_s=options.rebalance_s)
    log.info("drained; nothing is left to watch for")


if __name__ == "__main__":
    main()
