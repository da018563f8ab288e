"""What the driver of ``jobs/generate.py`` needs as a corpus gets more shards: memory, processor time, pace."""

from __future__ import annotations

import functools
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dakter.corpus import manifest
from dakter.corpus.layout import Layout
from jobs import generate
from jobs._cli import Stop
from jobs.suites import _apart
from jobs.suites._generate import generate_settings
from jobs.suites._tiny_sampler import TinySampler
from jobs.suites._watch import peak_mb

_SAMPLES = 16  # of a shard: next to no work, so that what a shard costs besides its samples is what is seen
_ACTORS = 2


def growth(folder: Path, counts: Sequence[int], stop: Stop) -> list[dict[str, Any]]:
    """One generation for each number of shards, each by a driver process of its own; ``folder`` is used up.

    Returns:
        By number of shards: ``driver_rss_mb_before`` its first shard and ``driver_peak_rss_mb`` (1e6 bytes), both of
        the driver alone; ``driver_cpu_ms_per_shard``; ``shards_per_second`` between the first commit and the last;
        ``seconds_besides``: start-up before the first commit, and the manifest at the end.
    """
    rows = []
    for shards in counts:
        stop.check("a suite keeps nothing unless it ends")
        rows.append(_apart.result(_apart.start(drive, str(folder / str(shards)), shards)))
        shutil.rmtree(folder / str(shards))
    return rows


def drive(out: str, shards: int) -> dict[str, float]:
    """In a process of its own: make a corpus of so many shards; the row of ``growth``."""
    settings = generate_settings(out, shards * _SAMPLES, _SAMPLES, _ACTORS)
    factory = functools.partial(TinySampler, micro_batch=_SAMPLES)
    before_mb, began, cpu_began = peak_mb(), time.time(), time.process_time()
    generate.run_with(settings, Stop(), factory)
    seconds, cpu_s = time.time() - began, time.process_time() - cpu_began
    layout = Layout.open(settings.place("corpus"))
    ends = [float(row["facts"]["committed_at"]) for row in manifest.records(layout, layout.committed())]
    assert len(ends) == shards, (len(ends), shards)
    between_s = max(ends) - min(ends)
    return {
        "shards": shards,
        "driver_rss_mb_before": before_mb,
        "driver_peak_rss_mb": peak_mb(),
        "driver_cpu_ms_per_shard": round(1000 * cpu_s / shards, 2),
        "shards_per_second": round((shards - 1) / between_s, 1),
        "seconds_besides": round(seconds - between_s, 1),
    }
