"""How fast a sampler may be before committing holds it up: delivered against offered rate, beside bare writers."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import zarr

from dakter import storage
from dakter.corpus.commit import write_shard
from dakter.corpus.layout import ARRAYS, CorpusConfig, Layout
from dakter.corpus.manifest import records
from dakter.corpus.objects import Objects
from dakter.corpus.pack import make
from dakter.corpus.shard import Arrays, compute
from jobs import generate
from jobs._cli import Stop
from jobs._shards import SamplerFactory
from jobs.suites._generate import generate_settings
from jobs.suites._paced_sampler import PacedSampler

DELIVERED = 0.95  # of what was offered: up to there the writer does not hold the sampler up


def knee(
    url: str, *, size_px: int, samples_per_shard: int, shards: int, repeats: int, steps: tuple[float, ...], stop: Stop
) -> dict[str, Any]:
    """Up to which rate one actor of ``jobs/generate.py`` delivers what is offered, as a share of a bare zarr writer's.

    The sampler sleeps between its micro-batches. Everything else is the job's own: Ray, the actor, compression, hashes,
    conditional puts, commit records. The rate is taken between the first commit and the last one, as it would go on for
    hours. Needs a Ray session of at least one CPU.

    Args:
        shards: how many each measurement writes.
        steps: offered rates, rising, as shares of the bare zarr writer's.
    """
    sampler = PacedSampler(size_px, micro_batch=min(32, samples_per_shard))
    config = CorpusConfig(num_samples=shards * samples_per_shard, samples_per_shard=samples_per_shard)
    some = [compute(sampler, shard * samples_per_shard, samples_per_shard) for shard in range(min(shards, 8))]
    arrays = [some[shard % len(some)] for shard in range(shards)]

    def fresh(name: str) -> Layout:
        place = storage.join(url, name)
        storage.remove_folder(place)
        layout = Layout.begin(place, config.identity(sampler))
        layout.grow(shards)
        return layout

    def rate(writing: Callable[[Layout], None]) -> float:
        found = []
        for _ in range(repeats):
            stop.check("a suite keeps nothing unless it ends")
            layout = fresh("bare")
            begin = time.perf_counter()
            writing(layout)
            found.append(shards * samples_per_shard / (time.perf_counter() - begin))
        return median(found)

    bare = rate(lambda layout: _bare_zarr(layout, arrays))
    per_sample = rate(lambda layout: _object_a_sample(layout, arrays))
    unpaced = rate(lambda layout: _make(layout, sampler))
    curve = []
    for share in steps:
        offered = share * bare
        paced = functools.partial(PacedSampler, size_px, sampler.micro_batch, offered)
        places = [storage.join(url, f"paced-{number}") for number in range(repeats)]
        found = [_delivered(place, paced, shards, samples_per_shard, stop) for place in places]
        curve.append({"offered": round(offered, 1), "delivered_share": round(median(found) / offered, 4)})
    kept = itertools.takewhile(lambda pair: pair[1]["delivered_share"] >= DELIVERED, zip(steps, curve, strict=True))
    return {
        "samples": shards * samples_per_shard,
        "tile_px": size_px,
        "bare_zarr_per_second": round(bare, 1),
        "float32_object_a_sample_per_second": round(per_sample, 1),
        "committed_per_second_unpaced_in_one_process": round(unpaced, 1),
        "unpaced_over_bare_zarr": round(unpaced / bare, 3),
        "unpaced_over_object_a_sample": round(unpaced / per_sample, 3),
        "curve": curve,
        "knee_over_bare_zarr": max((share for share, _ in kept), default=0.0),
    }


def _delivered(url: str, factory: SamplerFactory, shards: int, samples_per_shard: int, stop: Stop) -> float:
    """Samples per second that the job commits with one actor that draws by the sampler of ``factory``."""
    stop.check("a suite keeps nothing unless it ends")
    settings = generate_settings(url, shards * samples_per_shard, samples_per_shard, 1)
    generate.run_with(settings, stop, factory)
    layout = Layout.open(settings.place("corpus"))
    ends = sorted(record["facts"]["committed_at"] for record in records(layout, layout.committed()))
    storage.remove_folder(url)
    return (len(ends) - 1) * layout.samples_per_shard / (ends[-1] - ends[0])


def _make(layout: Layout, sampler: PacedSampler) -> None:
    for shard in range(layout.planned_shards()):
        write_shard(layout, shard, make(layout, sampler, shard)())


def _bare_zarr(layout: Layout, arrays: list[Arrays]) -> None:
    """Plain assignment of whole shards with the same codecs: no hashes, no record, no condition on the put."""
    group: Any = zarr.open_group(storage.zarr_store(layout.place("data.zarr")), mode="r+")
    size = layout.samples_per_shard
    for shard, pairs in enumerate(arrays):
        for name in ARRAYS:
            group[name][shard * size : (shard + 1) * size] = pairs[name]


def _object_a_sample(layout: Layout, arrays: list[Arrays]) -> None:
    objects = Objects(layout.url)
    for shard, pairs in enumerate(arrays):
        put_each(objects, shard * layout.samples_per_shard, pairs)


def put_each(objects: Objects, first: int, pairs: Arrays) -> None:
    """The common way: one uncompressed float32 object for the image and one for the label of each sample."""
    for name in ARRAYS:
        for number, sample in enumerate(pairs[name], start=first):
            objects.create(f"contrast/{name}/{number:08d}.npy", (sample.astype(np.float32) / 255.0).tobytes())
