"""Joint models that are good for nothing but sampling or labelling something, made in a second."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from dakter import rng
from dakter.data.tiles import TileCorpus
from dakter.diffusion.fit import TrainConfig, TrainingData, fit
from dakter.diffusion.network import JointUNet, NetworkConfig
from dakter.diffusion.pipeline import JointDiffusionPipeline, save_model
from dakter.diffusion.schedule import DiffusionConfig
from dakter.schema import OSD, SOS, ClassTable


def random_joint(
    network: NetworkConfig, diffusion: DiffusionConfig, table: ClassTable, **about: Any
) -> JointDiffusionPipeline:
    """A network with random weights everywhere, so that every input shows in its output.

    ``about``: what ``JointDiffusionPipeline.build`` wants beside ``b``.
    """
    unet = JointUNet.build(network, 1, len(table))
    with torch.no_grad():
        for number, (name, value) in enumerate(unet.named_parameters()):
            noise = torch.randn(value.shape, generator=rng.torch_generator(5, name, number))
            value.copy_(noise * 0.3 if value.ndim == 1 else noise / value[0].numel() ** 0.5)
        if unet.table is not None:
            unet.table.normal_(generator=rng.torch_generator(5, "table"))
    return JointDiffusionPipeline.build(unet.eval(), diffusion, b=0.4, class_table=table, **about)


def put_untrained_model(
    url: str,
    record: dict[str, Any],
    *,
    size_px: int,
    bands: Sequence[str],
    value_range: Sequence[float],
    mode: Literal["joint", "independent"] = "independent",
    dihedral: bool = False,
) -> None:
    """A ``random_joint`` of five classes and one band, saved."""
    about = {"dihedral": dihedral, "size_px": size_px, "bands": bands, "value_range": value_range}
    network = NetworkConfig(widths=(8, 8), blocks=(1, 1))
    save_model(random_joint(network, DiffusionConfig(mode=mode), OSD, **about), url, record)


def put_model_for(folder: Path, tiles: str, **more: Any) -> str:
    """The URL of a model that fits ``tiles``, by ``put_untrained_model``."""
    manifest = TileCorpus.open(tiles).manifest
    what = {"size_px": manifest.tile_px, "bands": manifest.bands, "value_range": manifest.value_range, **more}
    put_untrained_model(str(folder), {"source": "what the model learned from"}, **what)
    return str(folder)


def put_tiny_model(url: str) -> None:
    """A model of two training steps."""
    rng = np.random.default_rng(0)
    data = TrainingData(
        images=rng.integers(0, 256, (8, 1, 16, 16), dtype=np.uint8),
        labels=rng.integers(0, 2, (8, 16, 16), dtype=np.uint8),
        unlabelled=None,
        class_table=SOS,
        value_range=(0.0, 255.0),
        bands=("VV",),
        b=0.4,
    )
    result = fit(
        NetworkConfig(widths=(8, 8), blocks=(1, 1)),
        DiffusionConfig(),
        TrainConfig(steps=2, batch_size=4, warmup_steps=1, precision="fp32"),
        data,
        resume=None,
        on_checkpoint=lambda folder, metrics: None,
        on_log=lambda step, metrics: None,
        should_stop=lambda: False,
    )
    save_model(result.pipeline, url, {"identity": {}, "b": 0.4})
