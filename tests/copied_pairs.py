"""A tile corpus and a corpus of pairs, both made in a second, and a sweep over them: for tests of students."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dakter.corpus.commit import write_shard
from dakter.corpus.content import Content
from dakter.corpus.layout import CorpusConfig, Layout
from dakter.corpus.shard import compute
from dakter.data.build import prepare
from dakter.data.simulate import SceneConfig
from dakter.data.source import DataConfig
from dakter.data.tiles import Split, TileCorpus, TilesConfig
from dakter.schema import OSD
from jobs._cli import resolve
from jobs.distill import DistillSettings


class Copies:
    """Pairs that repeat the training tiles, labels hard: a corpus without a model."""

    micro_batch = 4

    def __init__(self, split: Split, value_range: tuple[float, float], bands: tuple[str, ...]):
        self.split = split
        self.content = Content(OSD, bands, split.images.shape[2], split.images.shape[3], value_range)
        self.identity: dict[str, Any] = {"model_digest": "copies"}

    def __call__(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows = indices % len(self.split.images)
        soft = (self.split.labels[rows][:, None] == np.arange(5)[:, None, None]).astype(np.uint8) * 255
        return self.split.images[rows], soft


def make_sources(root: Path) -> dict[str, str]:
    """URLs of a tile corpus (32 px) and of a corpus of 16 pairs in two shards."""
    places = {"tiles": str(root / "tiles"), "corpus": str(root / "corpus")}
    prepare(
        DataConfig(num_train=6, num_val=3, num_test=1, simulate=SceneConfig(size_px=64)),
        TilesConfig(size_px=32),
        places["tiles"],
        should_stop=lambda: False,
    )
    tiles = TileCorpus.open(places["tiles"])
    sampler = Copies(tiles.read("train"), tiles.manifest.value_range, tiles.manifest.bands)
    layout = Layout.begin(places["corpus"], CorpusConfig(samples_per_shard=8).identity(sampler))
    layout.grow(2)
    for shard in range(2):
        write_shard(layout, shard, compute(sampler, shard * 8, 8))
    return places


def sweep_settings(sources: Mapping[str, str], folder: Path, **more: Any) -> DistillSettings:
    """A sweep of seconds; ``more``: further overrides, by table and setting."""
    overrides = {
        "out": str(folder),
        "paths.tiles": sources["tiles"],
        "paths.corpus": sources["corpus"],
        "students.steps": 6,
        "students.evaluate_every": 2,
        "students.batch_size": 4,
        "students.num_seeds": 1,
        "sweep.num_trials": 4,
        "sweep.grace_steps": 2,
        "sweep.reduction_factor": 2.0,
        "sweep.architectures": ["PSPNet", "FPN"],
        "sweep.encoders": ["tu-mobilenetv3_small_100"],
        # A designed space: most of it learns next to nothing in six steps.
        "sweep.learning_rate": [1e-9, 1e-2],
        "ray.num_cpus": 2,
        "tracking.uri": f"sqlite:///{folder}/mlflow.db",
        **more,
    }
    return resolve(DistillSettings, overrides=overrides)
