"""Suite ``million``: a million samples in as many shards as 256x256 tiles would take, committed by generate.py.

What a corpus of that size costs besides its sampling: the driver's memory, ``status``, ``verify``, and how long a start
takes when nearly all of it stands.
"""

from __future__ import annotations

import functools
import os
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from dakter import storage
from dakter.corpus import manifest
from dakter.corpus.layout import ARRAYS, Layout
from dakter.corpus.shard import sha256
from dakter.corpus.status import status
from jobs import generate
from jobs._cli import Stop
from jobs.suites import _apart
from jobs.suites._generate import generate_settings
from jobs.suites._tiny_sampler import TinySampler
from jobs.suites._watch import Commits, peak_mb

SHARD = 256  # samples a shard: what 256x256 tiles have
ACTORS = 2
_MARKS = (0.1, 0.5, 1.0)  # of the shards: where the driver's memory is looked at


def run(settings: Any, stop: Stop) -> dict[str, Any]:
    """The figures, on the local disk below ``settings.out``."""
    folder = storage.local_path(settings.out) / "benchmark-million"
    return measure(folder, 20_000 if settings.tier == "short" else 1_000_000, stop)


def measure(folder: Path, num_samples: int, stop: Stop, *, repeats: int = 3) -> dict[str, Any]:
    """The figures; ``folder`` is emptied before and afterwards."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        settings = _settings(folder, num_samples)
        layout_url = settings.place("corpus")
        shards = -(-num_samples // SHARD)
        begin = time.monotonic()
        with Commits(layout_url, every_s=0.5) as commits, _memory_at(commits, shards) as memory_mb:
            made = generate.run_with(settings, stop, functools.partial(TinySampler))
        whole_s = time.monotonic() - begin
        layout = Layout.open(layout_url)
        assert len(layout.committed()) == shards == made["num_shards"]
        ends = [record["facts"]["committed_at"] for record in manifest.records(layout, layout.committed())]
        status_s = median(_timed(lambda: status(layout)) for _ in range(repeats))
        verified = _verify(layout, repeats, stop)
        again = _resume(folder, layout, num_samples, max(1, shards // 100))
        assert again["digest"] == made["corpus_digest"], (again, made)
        return {
            "num_samples": made["num_samples"],
            "num_shards": shards,
            "seconds_in_all": round(whole_s, 2),
            "shards_per_second": round((shards - 1) / (max(ends) - min(ends)), 2),
            "driver_peak_rss_mb_at_share": memory_mb,
            "status_seconds": round(status_s, 3),
            **verified,
            "resume_shards_missing": max(1, shards // 100),
            "resume_seconds_to_first_new_shard": round(again["seconds"], 2),
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _settings(folder: Path, num_samples: int) -> generate.GenerateSettings:
    return generate_settings(str(folder), num_samples, SHARD, ACTORS)


@contextmanager
def _memory_at(commits: Commits, shards: int) -> Iterator[dict[str, float]]:
    """The driver's peak resident memory so far, in MB (1e6), when each of ``_MARKS`` was committed, and at the end."""
    found: dict[str, float] = {}
    over = threading.Event()

    def watch() -> None:
        for mark in _MARKS:
            while not (commits.seen and commits.seen[-1][1] >= mark * shards):
                if over.wait(0.2):
                    return
            found[f"{mark:.0%}"] = peak_mb()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()
        found["with its manifest"] = peak_mb()


def _timed(what: Any) -> float:
    begin = time.perf_counter()
    what()
    return time.perf_counter() - begin


def _verify(layout: Layout, repeats: int, stop: Stop) -> dict[str, float]:
    """Seconds of ``verify``, and its rate over that of reading and hashing the shards with as many threads.

    ``verify`` must read the commit records too: at tiles of 8x8 a third of all objects, beside shards of 256x256 next
    to nothing. The last figure is against a loop that reads and hashes those as well.
    """
    committed = layout.committed()
    shards = [layout.key(name, shard) for shard in committed for name in ARRAYS]
    everything = [*shards, *(layout.commit_key(shard) for shard in committed)]

    def bare(keys: list[str]) -> None:
        with ThreadPoolExecutor(manifest.SHARDS_AT_ONCE) as pool:
            list(pool.map(lambda key: sha256(layout.objects.view(key)), keys))

    def verify() -> None:
        assert manifest.verify(layout, deep=False)["faults"] == []

    found = []
    for _ in range(repeats):
        stop.check("a suite keeps nothing unless it ends")
        found.append((_timed(verify), _timed(lambda: bare(shards)), _timed(lambda: bare(everything))))
    return {
        "verify_seconds": round(median(ours for ours, _, _ in found), 3),
        "bare_read_and_hash_seconds": round(median(shards_s for _, shards_s, _ in found), 3),
        "verify_over_bare_read_and_hash": round(median(shards_s / ours for ours, shards_s, _ in found), 3),
        "verify_over_bare_with_commit_records": round(median(all_s / ours for ours, _, all_s in found), 3),
    }


def _resume(folder: Path, layout: Layout, num_samples: int, missing: int) -> dict[str, Any]:
    """Take ``missing`` shards away and let a new process make them: seconds from its start to the first one begun."""
    committed = layout.committed()
    for shard in committed[:: len(committed) // missing][:missing]:
        for key in (layout.commit_key(shard), *(layout.key(name, shard) for name in ARRAYS)):
            storage.delete(layout.place(key))
    storage.delete(layout.place("manifest.json"))
    mark = folder / "mark"
    begin = time.time()
    again = _apart.result(_apart.start(resume, str(folder), num_samples))
    # The driver makes no sample: the earliest mark is that of the first actor to begin a shard.
    return {
        "seconds": min(float(name.split("-")[0]) for name in os.listdir(mark)) - begin,
        **again,
    }


def resume(folder: str, num_samples: int) -> dict[str, str]:
    """In a process of its own: the same command again."""
    factory = functools.partial(TinySampler, mark=f"{folder}/mark")
    figures = generate.run_with(_settings(Path(folder), num_samples), Stop(), factory)
    return {"digest": figures["corpus_digest"]}
