"""Suite ``chaos``: a real generation under everything that can fail, and proof that nothing was lost by it.

Drivers join a cluster of several raylets on this machine and write to an S3 server through a proxy that fails on
purpose, while actors, nodes and drivers are killed, a second driver does the same work, a disk fills up, a node gets
notice, the store refuses everything for a while, and one shard is poisoned. At the end the corpus is read back from the
server itself, not through the proxy, and compared with what a plain loop computes.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dakter.config import digest_json
from dakter.corpus import manifest
from dakter.corpus.layout import ARRAYS, Layout
from dakter.corpus.shard import compute, sha256
from dakter.errors import DakterError, listing
from jobs._cli import Stop
from jobs.benchmark import BenchmarkSettings
from jobs.suites import _moto
from jobs.suites._chaos_run import FULL_DISK_BYTES, Account, Disturber, Scale
from jobs.suites._chaos_sampler import ChaosSampler, traces
from jobs.suites._fault_proxy import KINDS, running
from jobs.suites._raylets import cluster

log = logging.getLogger("dakter.jobs.chaos")

SCALES = {
    "short": Scale(
        shards=24,
        micro_batches=2,
        delay_s=0.4,
        nodes=2,
        workers=3,
        events={"actor_kill": 2, "node_loss": 1, "driver_kill": 1, "second_driver": 1, "full_disk": 1, "drain": 1},
        store_faults=2,
        store_rate=0.12,
        full_s=3,
        outage_s=0,
        drain_s=3,
        twin_s=2,
    ),
    "full": Scale(
        shards=2200,
        micro_batches=4,
        delay_s=1.25,
        nodes=3,
        workers=6,
        events={
            "actor_kill": 24,
            "node_loss": 8,
            "driver_kill": 6,
            "second_driver": 2,
            "full_disk": 2,
            "drain": 2,
            "outage": 3,
        },
        store_faults=30,
        store_rate=0.02,
        full_s=45,
        outage_s=25,
        drain_s=20,
        twin_s=60,
    ),
}
_CPUS = 3  # of a node: its actors, one of the second driver, and slots that keep Ray Data from waiting
_DRAIN_GRACE_S = 5.0  # how long after its notice a node may still begin a shard: the driver looks now and then
_REQUEST_TIMEOUT_S = 5.0


def run(settings: BenchmarkSettings, stop: Stop) -> dict[str, Any]:
    """Run one tier.

    Raises:
        DakterError: something was lost, duplicated, altered or redone beyond measure; names it.
        Stopped: as asked.
    """
    return disturb(SCALES[settings.tier], stop, seed=4)


def disturb(scale: Scale, stop: Stop, *, seed: int) -> dict[str, Any]:
    """Run one generation through everything of ``scale``; returns the figures, raises DakterError if a bar breaks."""
    work = Path(tempfile.mkdtemp(prefix="dkc", dir="/tmp"))
    log.info("chaos: logs and traces in %s", work)
    plain = _undisturbed(scale)
    start = time.monotonic()
    with (
        _moto.bucket() as bucket,
        running(os.environ["AWS_ENDPOINT_URL"], work, seed=seed, hang_s=4 * _REQUEST_TIMEOUT_S) as proxy,
        cluster(
            {**os.environ, "AWS_ENDPOINT_URL": proxy.url, "DAKTER_S3_TIMEOUT_S": str(_REQUEST_TIMEOUT_S)},
            scale.nodes - 1,
            num_cpus=_CPUS,
        ) as nodes,
    ):
        nodes.add(num_cpus=_CPUS, disk_bytes=FULL_DISK_BYTES)
        started = time.monotonic()
        disturber = Disturber(scale, nodes, proxy, f"{bucket}/corpus", work, seed)
        disturber.run(stop)
        ended = time.monotonic()
        store = proxy.change(rate=0, left={})
        layout = Layout.open(f"{bucket}/corpus")
        verified, finalised = manifest.verify(layout), manifest.read_manifest(layout)
        rows = manifest.ranges(manifest.records(layout, layout.committed()))
    account, delivered = disturber.account, Counter(store["delivered"])
    figures = {
        "shards": scale.shards,
        "samples": verified["num_samples"],
        "seconds": round(time.monotonic() - start, 1),
        "seconds_disturbed": round(ended - started, 1),
        "events": dict(account.delivered),
        "store_faults": dict(delivered),
        "store_faults_by_operation": store["by_operation"],
        "store_requests_passed": store["passed"],
        "retries": disturber.said("; again in "),
        "full_disk_refusals": disturber.said("No space left"),
        "driver_exits": account.exits,
        "digest": verified["digest"],
        "digest_undisturbed": digest_json(plain),
        "digests_equal": verified["digest"] == digest_json(plain) == (finalised or {}).get("digest"),
        **_losses(plain, rows, verified),
        **_redone(scale, work / "traces", account, delivered),
        "shards_set_aside_besides_the_poisoned": len(account.set_aside),
        "shards_begun_after_drain_notice": _after_notice(scale, work / "traces", account),
        **({"full_disk_skipped": account.disk_skipped} if account.disk_skipped else {}),
    }
    broken = _broken(scale, figures, account, verified)
    if broken:
        raise DakterError(f"chaos: {len(broken)} bars are broken (logs in {work}):\n{listing(broken)}\n{figures}")
    shutil.rmtree(work, ignore_errors=True)
    return figures


def _undisturbed(scale: Scale) -> list[dict[str, Any]]:
    """The rows of the digest as a plain loop in this process makes them, without any store."""
    sampler, size = ChaosSampler(), 4 * scale.micro_batches
    rows = []
    for shard in range(scale.shards):
        arrays = compute(sampler, shard * size, size)
        objects = {name: {"decoded_sha256": sha256(arrays[name])} for name in ARRAYS}
        rows.append({"shard": shard, "first": shard * size, "count": size, "objects": objects})
    return manifest.ranges(rows)


def _losses(plain: list[dict[str, Any]], rows: list[dict[str, Any]], verified: Mapping[str, Any]) -> dict[str, int]:
    """Samples that are not there, there twice, or not the ones that the plain loop makes."""
    stands = {row["shard"]: row for row in rows}
    count = plain[0]["count"]
    kinds = Counter(fault["kind"] for fault in verified["faults"])
    return {
        "samples_lost": count * sum(row["shard"] not in stands for row in plain),
        "samples_duplicated": count * kinds["duplicated"],
        "samples_altered": count * sum(stands.get(row["shard"], row) != row for row in plain),
        "faults_found_by_verify": len(verified["faults"]),
    }


def _redone(scale: Scale, folder: Path, account: Account, delivered: Counter[str]) -> dict[str, float]:
    """Work that was done more than once, in shards; what the second driver did is its own, not a fault's."""
    found = traces(folder)
    by_twin = sum(trace.driver == "twin" for trace in found) / scale.micro_batches
    computed = len(found) / scale.micro_batches
    redone = computed - scale.shards
    faults = sum(account.delivered.values()) + delivered.total()
    return {
        "shards_computed": round(computed, 2),
        "shards_computed_by_second_driver": round(by_twin, 2),
        "shards_redone": round(redone, 2),
        "faults": faults,
        "actors_lost": account.lost_actors,
        "shards_redone_per_fault": round(redone / faults, 3),
        "shards_redone_per_actor_lost": round(max(0.0, redone - by_twin) / max(1, account.lost_actors), 3),
    }


def _after_notice(scale: Scale, folder: Path, account: Account) -> int:
    """Shards whose first micro-batch was begun on a node well after that node was told to leave."""
    found = traces(folder)
    size = 4 * scale.micro_batches
    return sum(
        trace.node == name and trace.first % size == 0 and trace.began > noticed + _DRAIN_GRACE_S
        for name, noticed in account.drained.items()
        for trace in found
    )


def _broken(scale: Scale, figures: Mapping[str, Any], account: Account, verified: Mapping[str, Any]) -> list[str]:
    """Every promise that was not kept, in words."""
    bars = {
        "the digest of the bytes read back is that of the undisturbed loop": figures["digests_equal"],
        "no sample is lost": figures["samples_lost"] == 0,
        "no sample is duplicated": figures["samples_duplicated"] == 0,
        "no sample is altered": figures["samples_altered"] == 0,
        f"verify finds nothing: {verified['faults']}": not verified["faults"],
        "redone work is under one shard a fault": figures["shards_redone_per_fault"] < 1,
        "redone work is under one shard an actor lost": figures["shards_redone_per_actor_lost"] < 1,
        f"only the poisoned shard was set aside, not {account.set_aside}": not account.set_aside,
        "the poisoned shard was set aside with its traceback": "is poisoned" in account.poison_traceback,
        "the driver said so with exit status 1": "1" in account.exits,
        "and 0 when all was whole": "0" in account.exits,
        "no shard was begun on a node that was to leave": figures["shards_begun_after_drain_notice"] == 0,
        "the full disk was felt": bool(account.disk_skipped) or figures["full_disk_refusals"] > 0,
    }
    for kind, count in scale.events.items():
        wanted = 0 if kind == "full_disk" and account.disk_skipped else count
        bars[f"{kind}: {wanted} times, not {account.delivered[kind]}"] = account.delivered[kind] == wanted
    for kind in KINDS:
        found = figures["store_faults"].get(kind, 0)
        bars[f"{kind}: at least {scale.store_faults} times, not {found}"] = found >= scale.store_faults
    return [bar for bar, kept in bars.items() if not kept]
