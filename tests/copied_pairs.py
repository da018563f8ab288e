"""A tile corpus and a corpus of pairs, both made in a second, and a sweep over them: for tests of students."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tiny_model import put_untrained_model

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
from jobs._tile_labeller import TileLabeller
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


def make_sources(root: Path, num_unlabelled: int = 0) -> dict[str, str]:
    """URLs of a tile corpus (32 px) and of a corpus of 16 pairs in two shards.

    With unlabelled tiles, also those of an untrained ``model`` and of the ``labelled`` corpus it makes, in shards of 4.
    """
    places = {"tiles": str(root / "tiles"), "corpus": str(root / "corpus")}
    prepare(
        DataConfig(num_train=6, num_val=3, num_test=1, num_unlabelled=num_unlabelled, simulate=SceneConfig(size_px=64)),
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
    if num_unlabelled:
        places |= {"model": str(root / "model"), "labelled": str(root / "labelled")}
        what: dict[str, Any] = {"size_px": 32, "bands": tiles.manifest.bands, "value_range": tiles.manifest.value_range}
        put_untrained_model(places["model"], {}, **what)
        labeller = TileLabeller(places["model"], places["tiles"], 2, 4, "fp32", 0, 1, "cpu")
        layout = Layout.begin(places["labelled"], CorpusConfig(samples_per_shard=4).identity(labeller))
        layout.grow(shards := layout.num_shards(num_unlabelled))
        for shard in range(shards):
            write_shard(layout, shard, compute(labeller, shard * 4, layout.size(shard)))
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
