"""Where a corpus stands, from storage alone: done, in flight, failed, how fast, how long still, what it has cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dakter.corpus import ledger
from dakter.corpus.layout import Layout
from dakter.corpus.manifest import RECORDS_AT_ONCE, each, read_manifest
from dakter.progress import duration

# The rate is that of the latest commits, so that it tells of the machines that work now.
_LATEST = 64


def status(layout: Layout) -> dict[str, Any]:
    """Counts of shards and samples, what is in flight, what was given up and why, rate and time left.

    It takes a few listings and a document for each worker, run and failed shard: seconds for thousands of shards.
    """
    committed_at = layout.committed_at()
    committed, size = sorted(committed_at), layout.samples_per_shard
    num_samples = sum(map(layout.size, committed))
    planned = max(layout.planned_shards(), len(committed))
    manifest = read_manifest(layout)
    busy = ledger.in_flight(layout, set(committed))
    rate = _rate(sorted(committed_at.values())) * size if busy else 0.0
    missing = layout.samples_before(planned) - num_samples
    runs = ledger.runs(layout)
    failed = sorted(set(layout.failed()) - set(committed))
    return {
        "url": layout.url,
        "num_samples": num_samples,
        "num_samples_planned": num_samples + missing,
        "num_shards": len(committed),
        "num_shards_planned": planned,
        "num_shards_missing": planned - len(committed),
        "samples_per_shard": size,
        "in_flight": busy,
        "samples_per_second": round(rate, 3) or None,
        "seconds_left": round(missing / rate, 1) if rate else None,
        "failed": list(each(failed, lambda shard: _failure(layout, shard), RECORDS_AT_ONCE)),
        "runs": runs,
        "worker_hours": round(sum(run["worker_s"] for run in runs) / 3600, 4),
        "finalised": manifest is not None and [row["shard"] for row in manifest["ranges"]] == committed,
        "digest": manifest["digest"] if manifest else None,
    }


def lines(found: dict[str, Any]) -> list[str]:
    """For people."""
    finalised = f"finalised, digest {found['digest']}" if found["finalised"] else "not finalised"
    out = [
        f"{found['url']}: {found['num_samples']} of {found['num_samples_planned']} samples committed "
        f"({found['num_shards']} of {found['num_shards_planned']} shards), {found['num_shards_missing']} shards "
        f"missing, {len(found['failed'])} of them set aside; {finalised}",
        f"{len(found['runs'])} runs, {found['worker_hours']:.3g} worker hours",
    ]
    if found["in_flight"]:
        shards = ", ".join(f"{row['shard']} (attempt {row['attempt']}, {row['where']})" for row in found["in_flight"])
        out.append(f"in flight: {shards}")
    if found["seconds_left"] is not None:
        out.append(f"{found['samples_per_second']:.3g} samples/s lately, {duration(found['seconds_left'])} left")
    return out + [f"  {line}" for line in failure_lines(found["failed"])]


def failure_lines(failed: Sequence[dict[str, Any]]) -> list[str]:
    """One line for each shard that was set aside."""
    return [f"shard {row['shard']} ({row['attempts']} attempts): {row['error']}" for row in failed]


def _rate(times: Sequence[float]) -> float:
    """Commits a second over the latest ones; 0 if fewer than two are known."""
    latest = times[-_LATEST:]
    if len(latest) < 2:
        return 0.0
    return (len(latest) - 1) / max(latest[-1] - latest[0], 1e-3)


def _failure(layout: Layout, shard: int) -> dict[str, Any]:
    record = dict(layout.read_json(layout.failed_key(shard)))
    return {key: record.get(key) for key in ("shard", "first", "count", "attempts", "error")}
