"""A joint model that is good for nothing but sampling something, made in a second."""

from __future__ import annotations

import numpy as np

from dakter.diffusion.fit import TrainConfig, TrainingData, fit
from dakter.diffusion.network import NetworkConfig
from dakter.diffusion.pipeline import save_model
from dakter.diffusion.schedule import DiffusionConfig
from dakter.schema import SOS


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
