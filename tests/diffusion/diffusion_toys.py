"""Small parts that the diffusion tests share."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from tiny_model import random_joint

from dakter.diffusion.batch import TrainingData
from dakter.diffusion.fit import FitResult, TrainConfig, fit
from dakter.diffusion.network import NetworkConfig
from dakter.diffusion.pipeline import JointDiffusionPipeline
from dakter.diffusion.schedule import DiffusionConfig, alpha_sigma
from dakter.schema import IGNORE, SOS

PLAIN = NetworkConfig(widths=(8, 16), blocks=(1, 1), attention=True)
TINY = PLAIN.model_copy(update={"descriptors": True})
TRAIN = TrainConfig(
    steps=6, batch_size=4, warmup_steps=2, learning_rate=3e-3, precision="fp32", log_every=2, checkpoint_every=3
)


def toy_data(unlabelled: bool = True, size: int = 16) -> TrainingData:
    """Dark squares (oil) on a brighter, slightly noisy sea; the unlabelled images are mere noise; val mirrors three."""
    draws = np.random.default_rng(3)
    images = draws.integers(160, 200, (7, 1, size, size), dtype=np.uint8)
    labels = np.zeros((7, size, size), np.uint8)
    for label, (row, column) in zip(labels, draws.integers(0, size - 6, (7, 2)), strict=True):
        label[row : row + 6, column : column + 5] = 1
    images[:, 0][labels == 1] //= 4
    val_labels = labels[:3, ::-1].copy()
    val_labels[0, :2] = IGNORE
    more = draws.integers(0, 255, (5, 1, size, size), dtype=np.uint8) if unlabelled else None
    return TrainingData(images, labels, more, SOS, (0.0, 255.0), ("vv",), 0.4, images[:3, :, ::-1].copy(), val_labels)


def run_fit(train: TrainConfig = TRAIN, **changes: Any) -> FitResult:
    """``fit`` of the toy set with callbacks that do nothing unless given."""
    arguments: dict[str, Any] = {
        "resume": None,
        "on_checkpoint": lambda folder, metrics: None,
        "on_log": lambda step, record: None,
        "should_stop": lambda: False,
    }
    network = changes.pop("network", TINY)
    diffusion = changes.pop("diffusion", DiffusionConfig())
    data = changes.pop("data", None) or toy_data()
    return fit(network, diffusion, train, data, **{**arguments, **changes})


def random_pipeline(
    mode: str = "independent", size: int = 16, dihedral: bool = False, network: NetworkConfig = TINY
) -> JointDiffusionPipeline:
    """``random_joint`` of two classes."""
    diffusion = DiffusionConfig.model_validate({"mode": mode})
    about = {"bands": ("vv",), "value_range": (0.0, 255.0)}
    return random_joint(network, diffusion, SOS, dihedral=dihedral, size_px=size, **about)


class Oracle:
    """The optimal network for x ~ N(mean, std) and y of class 1 with probability ``share``, pixels independent."""

    mean, std, share, b = 0.3, 0.2, 0.3, 0.5

    def __call__(self, x: torch.Tensor, y: torch.Tensor, t_x: torch.Tensor, t_y: torch.Tensor) -> SimpleNamespace:
        alpha, sigma = (a.view(-1, 1, 1, 1) for a in alpha_sigma(t_x))
        clean = self.mean + alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2) * (x - alpha * self.mean)
        v = (alpha * x - clean) / sigma
        alpha, sigma = (a.view(-1, 1, 1, 1) for a in alpha_sigma(t_y))
        prior = torch.tensor([1 - self.share, self.share]).log().view(1, 2, 1, 1)
        # log N(y_t; alpha y_k, sigma^2) over k differs by alpha <y_k, y_t> / sigma^2 = 2 alpha b y_t[k] / sigma^2
        return SimpleNamespace(image=v, logits=prior + 2 * self.b * alpha * y / sigma**2)


def kept_checkpoints(store: list[dict[str, bytes]]) -> Any:
    """An ``on_checkpoint`` that keeps every folder's bytes in ``store``."""

    def keep(folder: Path, metrics: dict[str, float]) -> None:
        store.append({path.name: path.read_bytes() for path in folder.iterdir()})

    return keep


def unpack(files: dict[str, bytes], folder: Path) -> Path:
    """Write what ``kept_checkpoints`` kept."""
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder
