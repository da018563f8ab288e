"""jobs/generate.py with a sampler that is no model, on a Ray of its own: what its tests have in common."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_pairs import FakeSampler

from dakter.corpus import manifest
from dakter.corpus.commit import write_shard
from dakter.corpus.layout import CorpusConfig, Layout
from dakter.corpus.shard import compute
from jobs import _cli, _generation, generate
from jobs import _corpus_verbs as verbs
from jobs._cli import Stop
from jobs._ray import RayConfig, session
from jobs._shards import Row

SAMPLES, SHARD = 48, 8


@pytest.fixture(scope="module")
def own_ray(s3_server: str) -> Iterator[Any]:
    """One loopback Ray for the whole module, its workers set up for the S3 server."""
    tests = str(Path(__file__).parent)
    names = {
        "PYTHONPATH": os.pathsep.join([tests, os.environ.get("PYTHONPATH", "")]),
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**names, "AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1"}.items():
            patch.setenv(name, value)
        with session(RayConfig(num_cpus=4)) as ray:
            yield ray


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Digest of the corpus as a plain loop makes it, without any Ray."""
    config = CorpusConfig(samples_per_shard=SHARD)
    layout = Layout.begin(str(tmp_path_factory.mktemp("plain")), config.identity(FakeSampler()))
    for shard in range(SAMPLES // SHARD):
        write_shard(layout, shard, compute(FakeSampler(), shard * SHARD, SHARD))
    return str(manifest.finalise(layout)["digest"])


def in_process(ray: Any, factory: Any, work: Any, config: Any, **other: Any) -> Iterator[Row]:
    """In place of ``fan_out``, where the pool of actors is not what a test is about."""
    layout = Layout.open(work.corpus)
    for shard in work.shards:
        write_shard(layout, shard, compute(factory(), shard * layout.samples_per_shard, layout.size(shard)))
        yield Row(shard, "written", 1)


def run_in_process(settings: generate.GenerateSettings, **sampler: Any) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_generation, "fan_out", in_process)
        return run(settings, **sampler)


def settings(out: str | Path, **changes: Any) -> generate.GenerateSettings:
    over = {
        "out": str(out),
        "corpus.num_samples": SAMPLES,
        "corpus.samples_per_shard": SHARD,
        "ray.generate_cpus": 1,
        **{key.replace("__", "."): value for key, value in changes.items()},
    }
    return _cli.resolve(generate.GenerateSettings, overrides=over)


def run(settings: generate.GenerateSettings, stop: Stop | None = None, **sampler: Any) -> dict[str, Any]:
    return generate.run_with(settings, stop or Stop(), functools.partial(FakeSampler, **sampler))


def verify(settings: generate.GenerateSettings, **options: bool) -> dict[str, Any]:
    return verbs.verify_with(settings, Stop(), verbs.VerifyOptions(**options), FakeSampler)


def traced(folder: Path) -> list[int]:
    """First index of each micro-batch that was computed."""
    return sorted(int(path.name.split("-")[0]) for path in folder.iterdir())
