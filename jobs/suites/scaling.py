"""Suite ``scaling``: generation by more and more actors at the pace of a GPU, and many actors that commit at once.

The sampler sleeps, so that a machine without a GPU stands in for several; what the actors share (cores that encode, the
store, Ray, the driver) is real, and is what is measured.
"""

from __future__ import annotations

import functools
import shutil
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dakter import storage
from dakter.corpus.commit import write_shard
from dakter.corpus.layout import CorpusConfig, Layout
from dakter.corpus.manifest import records, verify
from dakter.corpus.pack import make
from jobs import generate
from jobs._cli import Stop
from jobs._ray import RayConfig, session
from jobs.suites import _moto
from jobs.suites._generate import generate_settings
from jobs.suites._paced_sampler import PacedSampler
from jobs.suites._watch import Commits

# Pairs of 256x256 that one H100 would draw in a second, a stated rate, not a measured one: 989 TFLOPS (dense bf16 of
# the SXM form, its data sheet), a quarter of them reached, over 20 solver steps and 4 draws of the read-out of 91.04
# GFLOP each (the network of preset sos-256-gpu). infra/costs.py reckons so too; a test compares.
H100_PER_SECOND = 113.2


@dataclass(frozen=True)
class Sizes:
    """How much a tier measures.

    Attributes:
        actors: how many draw at once, one measurement each.
        shards_each: shards of every actor, the same for any number of them.
        committers, commits_each: threads that commit at once, and shards of each.
    """

    actors: tuple[int, ...]
    tile_px: int
    shard: int
    shards_each: int
    committers: int
    commits_each: int


FULL = Sizes((1, 2, 4, 8), 256, 64, 12, 64, 2)
SHORT = Sizes((1, 2), 64, 16, 2, 8, 1)


def run(settings: Any, stop: Stop) -> dict[str, Any]:
    """The figures, on the local disk below ``settings.out``; the commits of many at once also on loopback's S3."""
    folder = storage.local_path(settings.out) / "benchmark-scaling"
    return measure(folder, SHORT if settings.tier == "short" else FULL, stop)


def measure(folder: Path, sizes: Sizes, stop: Stop) -> dict[str, Any]:
    """The figures; ``folder`` is emptied before and afterwards."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        with _moto.bucket() as bucket:
            at_once = {
                name: commit_at_once(storage.join(url, "at-once"), sizes)
                for name, url in (("local", str(folder)), ("s3", bucket))
            }
        with session(RayConfig(num_cpus=max(sizes.actors))):
            return {"weak_scaling": weak_scaling(folder, sizes, stop), "commits_at_once": at_once}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def weak_scaling(folder: Path, sizes: Sizes, stop: Stop) -> dict[str, Any]:
    """Delivered over offered rate by number of actors, beside the rate of actors that do not sleep at all."""
    pace = H100_PER_SECOND
    limit = _delivered(folder / "limit", sizes, max(sizes.actors), 0.0, stop)
    rows = []
    for actors in sizes.actors:
        delivered = _delivered(folder / f"paced-{actors}", sizes, actors, pace, stop)
        offered = actors * pace
        rows.append(
            {
                "actors": actors,
                "offered_per_second": round(offered, 1),
                "offered_over_writers_limit": round(offered / limit, 3),
                "efficiency": round(delivered / offered, 4),
            }
        )
    return {
        "tile_px": sizes.tile_px,
        "samples_per_second_of_one_actor": round(pace, 2),
        "writers_limit_per_second": round(limit, 1),
        "curve": rows,
    }


def _delivered(folder: Path, sizes: Sizes, actors: int, pace: float, stop: Stop) -> float:
    """Samples per second from the first one begun to the last commit seen; ``pace``: of each actor, 0: no sleep."""
    num_samples = actors * sizes.shards_each * sizes.shard
    settings = generate_settings(str(folder), num_samples, sizes.shard, actors)
    factory = functools.partial(PacedSampler, sizes.tile_px, micro_batch=16, per_second=pace, bases=16)
    with Commits(settings.place("corpus")) as commits:
        generate.run_with(settings, stop, factory)
    layout = Layout.open(settings.place("corpus"))
    facts: list[Mapping[str, Any]] = [record["facts"] for record in records(layout, layout.committed())]
    began = min(row["committed_at"] - row["worker_s"] for row in facts)
    rate = len(facts) * sizes.shard / (commits.at(len(facts)) - began)
    shutil.rmtree(folder)
    return rate


def commit_at_once(url: str, sizes: Sizes) -> dict[str, Any]:
    """Shards per second of one committer and of ``sizes.committers`` threads at once, all of them whole afterwards."""
    sampler = PacedSampler(sizes.tile_px, micro_batch=16, bases=16)
    count = sizes.committers * sizes.commits_each

    def rate(name: str, threads: int) -> float:
        layout = Layout.begin(storage.join(url, name), CorpusConfig(samples_per_shard=sizes.shard).identity(sampler))
        layout.grow(count)

        def commit(shard: int) -> bool:
            return write_shard(layout, shard, make(layout, sampler, shard)()).written

        begin = time.perf_counter()
        with ThreadPoolExecutor(threads) as pool:
            written = list(pool.map(commit, range(count)))
        seconds = time.perf_counter() - begin
        assert all(written)
        found = verify(layout)
        assert found["num_shards"] == count
        assert found["faults"] == []
        storage.remove_folder(layout.url)
        return count / seconds

    alone, beside = rate("alone", 1), rate("beside", sizes.committers)
    return {
        "committers": sizes.committers,
        "shards": count,
        "shards_per_second_one": round(alone, 2),
        "shards_per_second_all": round(beside, 2),
        "all_over_one": round(beside / alone, 3),
    }
