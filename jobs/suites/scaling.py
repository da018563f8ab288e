"""Suite ``scaling``: generation by more and more actors at the pace of a GPU, and many actors that commit at once.

The sampler sleeps, so that a machine without a GPU stands in for several; what the actors share (cores that encode, the
store, Ray, the driver) is real, and is what is measured.
"""

from __future__ import annotations

import functools
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from dakter import storage
from dakter.corpus.commit import write_shard
from dakter.corpus.layout import CorpusConfig, Layout
from dakter.corpus.manifest import verify
from dakter.corpus.pack import make
from jobs import generate
from jobs._cli import Stop
from jobs._ray import RayConfig, session
from jobs.suites import _moto
from jobs.suites._driver_growth import growth
from jobs.suites._generate import generate_settings
from jobs.suites._paced_sampler import PacedSampler
from jobs.suites._watch import Cores, clock

# Pairs of 256x256 that one H100 would draw in a second, a stated rate, not a measured one: 989 TFLOPS (dense bf16 of
# the SXM form, its data sheet), a quarter of them reached, over 20 solver steps and 4 draws of the read-out of 91.04
# GFLOP each (the network of preset sos-256-gpu). infra/costs.py reckons so too; a test compares.
H100_PER_SECOND = 113.2


@dataclass(frozen=True)
class Sizes:
    """How much a tier measures.

    Attributes:
        actors: how many draw at once, one measurement each.
        tile_px, shard: rows and columns of a tile; samples of a shard.
        shards_each: shards of every actor, the same for any number of them, even.
        committers, commits_each: threads that commit at once, and shards of each.
        counts: shards of a corpus, one look at the driver each.
        repeats: of each measurement; medians are told.
    """

    actors: tuple[int, ...] = (1, 2)
    tile_px: int = 64
    shard: int = 16
    shards_each: int = 2
    committers: int = 8
    commits_each: int = 1
    counts: tuple[int, ...] = (20, 40)
    repeats: int = 1


FULL = Sizes((1, 2, 4, 8), 256, 64, 16, 64, 2, (1000, 3000, 10_000), 3)
SHORT = Sizes()
SHARES = (0.6, 0.8, 1.0)  # of the writer's limit, offered by the most actors: where the curve bends


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
            weak = weak_scaling(folder, sizes, stop)
        return {
            "weak_scaling": weak,
            "commits_at_once": at_once,
            "driver_by_number_of_shards": growth(folder / "growth", sizes.counts, stop),
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class Delivery:
    """One generation.

    Attributes:
        per_second: samples per second while all actors are at work: between the commits a quarter and three quarters
            through the corpus, whole rounds of the actors.
        besides_s: what the whole of it took beyond that rate, from the first sample begun to the last commit: actors
            that begin one after the other, the last shards that are stored while nothing is drawn.
        cores_busy: share of the machine's cores in use between those two commits.
    """

    per_second: float
    besides_s: float
    cores_busy: float


def weak_scaling(folder: Path, sizes: Sizes, stop: Stop) -> dict[str, Any]:
    """Delivered over offered rate by number of actors, beside the rate of actors that do not sleep at all.

    All rates are those of the time when all actors are at work: start and end, which a long run has but once, are told
    in seconds beside them.

    Why it bends: ``cores_busy`` is the share of the machine's cores in use meanwhile. Where it nears 1, compressing,
    hashing and copying on these cores is the limit; where it does not, something that the actors wait for is.
    """
    most = max(sizes.actors)
    limit = _delivered(folder / "limit", sizes, most, 0.0, stop)
    offers = [(actors, H100_PER_SECOND) for actors in sizes.actors]
    offers += [(most, share * limit.per_second / most) for share in SHARES]
    rows = []
    for number, (actors, pace) in enumerate(offers):
        found = _delivered(folder / f"paced-{number}", sizes, actors, pace, stop)
        offered = actors * pace
        rows.append(
            {
                "actors": actors,
                "samples_per_second_of_one_actor": round(pace, 2),
                "offered_per_second": round(offered, 1),
                "offered_over_writers_limit": round(offered / limit.per_second, 3),
                "efficiency": round(found.per_second / offered, 4),
                "start_and_end_seconds": round(found.besides_s, 2),
                "cores_busy": round(found.cores_busy, 3),
            }
        )
    return {
        "tile_px": sizes.tile_px,
        "cores": os.cpu_count(),
        "writers_limit_per_second": round(limit.per_second, 1),
        "writers_limit_cores_busy": round(limit.cores_busy, 3),
        "curve": rows[: len(sizes.actors)],
        "shares_of_the_writers_limit": rows[len(sizes.actors) :],
    }


def _delivered(folder: Path, sizes: Sizes, actors: int, pace: float, stop: Stop) -> Delivery:
    """Medians of some generations; ``pace``: samples per second of each actor, 0: no sleep."""
    num_samples = actors * sizes.shards_each * sizes.shard
    settings = generate_settings(str(folder), num_samples, sizes.shard, actors)
    factory = functools.partial(PacedSampler, sizes.tile_px, micro_batch=16, per_second=pace, bases=16)
    found = []
    for _ in range(sizes.repeats):
        with Cores() as cores:
            generate.run_with(settings, stop, factory)
        layout = Layout.open(settings.place("corpus"))
        assert len(layout.committed()) * sizes.shard == num_samples
        found.append(_steady(*clock(layout), actors, sizes.shard, cores))
        shutil.rmtree(folder)
    return Delivery(*(median(column) for column in zip(*found, strict=True)))


def _steady(began: float, commits: list[float], actors: int, shard: int, cores: Cores) -> tuple[float, float, float]:
    """The columns of ``Delivery``, of one generation with a multiple of two shards an actor."""
    first, count = len(commits) // 4, len(commits) // 2
    assert count % actors == 0, "actors in step commit in bursts: whole rounds alone tell their rate"
    begin, end = commits[first], commits[first + count]
    rate = count * shard / (end - begin)
    return rate, commits[-1] - began - len(commits) * shard / rate, cores.busy(begin, end)


def commit_at_once(url: str, sizes: Sizes) -> dict[str, Any]:
    """Shards per second of one committer and of ``sizes.committers`` threads at once, all of them whole afterwards."""
    sampler = PacedSampler(sizes.tile_px, micro_batch=16, bases=16)
    count = sizes.committers * sizes.commits_each

    def rate(threads: int) -> float:
        layout = Layout.begin(
            storage.join(url, f"by-{threads}"), CorpusConfig(samples_per_shard=sizes.shard).identity(sampler)
        )
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

    alone, beside = (median(rate(threads) for _ in range(sizes.repeats)) for threads in (1, sizes.committers))
    return {
        "committers": sizes.committers,
        "shards": count,
        "shards_per_second_one": round(alone, 2),
        "shards_per_second_all": round(beside, 2),
        "all_over_one": round(beside / alone, 3),
    }
