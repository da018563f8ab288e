"""Joint models that are good for nothing but sampling something, made in a second."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch

from dakter.diffusion.fit import TrainConfig, TrainingData, fit
from dakter.diffusion.network import JointUNet, NetworkConfig
from dakter.diffusion.pipeline import JointDiffusionPipeline, save_model
from dakter.diffusion.schedule import DiffusionConfig
from dakter.schema import OSD, SOS


def put_untrained_model(
    url: str,
    record: dict[str, Any],
    *,
    size_px: int,
    bands: Sequence[str],
    value_range: Sequence[float],
    mode: Literal["joint", "independent"] = "independent",
) -> None:
    """A model of five classes and one band that has learned nothing, its weights stirred: no output of it is flat."""
    torch.manual_seed(0)
    network = JointUNet.build(NetworkConfig(widths=(8, 8), blocks=(1, 1)), bands=1, num_classes=5)
    with torch.no_grad():
        for weights in network.parameters():
            weights += 0.1 * torch.randn(weights.shape)
    pipeline = JointDiffusionPipeline.build(
        network,
        DiffusionConfig(mode=mode),
        b=0.5,
        dihedral=False,
        size_px=size_px,
        class_table=OSD,
        bands=bands,
        value_range=value_range,
    )
    save_model(pipeline, url, record)


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
