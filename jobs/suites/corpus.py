"""Suite ``corpus``: delivery of generated samples, the writer's limit, and reading; each beside a named alternative."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dakter import storage
from dakter.corpus.commit import write_shard
from dakter.corpus.layout import CorpusConfig, Layout
from dakter.corpus.shard import compute
from jobs._cli import Stop
from jobs._ray import RayConfig, session
from jobs.suites import _moto
from jobs.suites._delivery import deliver, demo_model
from jobs.suites._knee import knee
from jobs.suites._paced_sampler import PacedSampler
from jobs.suites._reading import compare


@dataclass(frozen=True)
class Sizes:
    """How much a tier measures."""

    actors: int
    delivery_samples: int
    delivery_shard: int
    bare_s: float
    tile_px: int
    shard: int
    knee_shards: int
    knee_steps: tuple[float, ...]
    read_shards: int
    loop_samples: int
    repeats: int


FULL = Sizes(2, 1536, 32, 20.0, 256, 256, 12, (0.5, 0.8, 0.9, 1.0, 1.2), 8, 200, 3)
SHORT = Sizes(2, 64, 16, 3.0, 64, 16, 4, (0.5, 1.2), 8, 32, 1)


def run(settings: Any, stop: Stop) -> dict[str, Any]:
    """All figures in one run, on the local disk below ``settings.out`` and on an S3 server on loopback."""
    return measure(
        storage.local_path(settings.out) / "benchmark-corpus", SHORT if settings.tier == "short" else FULL, stop
    )


def measure(folder: Path, sizes: Sizes, stop: Stop) -> dict[str, Any]:
    """The figures; ``folder`` is emptied before and afterwards."""
    with _scratch(folder), _moto.bucket() as remote:
        places = [("local", str(folder)), ("s3", remote)]
        model = str(folder / "model")
        demo_model(model)
        with session(RayConfig(num_cpus=sizes.actors, generate_workers=sizes.actors)):
            delivery = deliver(
                places,
                model,
                actors=sizes.actors,
                num_samples=sizes.delivery_samples,
                samples_per_shard=sizes.delivery_shard,
                repeats=sizes.repeats,
                bare_s=sizes.bare_s,
                stop=stop,
            )
            knees = {
                name: knee(
                    storage.join(url, "knee"),
                    size_px=sizes.tile_px,
                    samples_per_shard=sizes.shard,
                    shards=sizes.knee_shards,
                    repeats=sizes.repeats,
                    steps=sizes.knee_steps,
                    stop=stop,
                )
                for name, url in places
            }
        return {
            "delivery": delivery,
            "knee": knees,
            "reading": {
                name: compare(
                    filled(storage.join(url, "reading"), sizes),
                    repeats=sizes.repeats,
                    loop_samples=sizes.loop_samples,
                    stop=stop,
                )
                for name, url in places
            },
        }


def filled(url: str, sizes: Sizes) -> str:
    """A corpus to read."""
    sampler = PacedSampler(sizes.tile_px, micro_batch=min(32, sizes.shard))
    layout = Layout.begin(url, CorpusConfig(samples_per_shard=sizes.shard).identity(sampler))
    layout.grow(sizes.read_shards)
    for shard in range(sizes.read_shards):
        write_shard(layout, shard, compute(sampler, shard * sizes.shard, sizes.shard))
    return url


@contextmanager
def _scratch(folder: Path) -> Iterator[None]:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)
