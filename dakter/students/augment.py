"""Augmentation, the same for every arm and for real and generated rows: dihedral, zoom, brightness.

What happens to a row depends on (seed, step, row) alone.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from dakter.config import Config, setting
from dakter.rng import numpy_rng
from dakter.turns import turn


class AugmentConfig(Config):
    """Strengths; zero or false switches a part off."""

    dihedral: bool = setting(True, "one of the 8 flips and quarter turns (4 that keep the shape of oblong tiles)")
    zoom_share: float = setting(0.5, "share of rows that are cropped and enlarged", ge=0, le=1)
    zoom_max: float = setting(1.6, "largest enlargement; drawn log-uniformly from 1 on", ge=1, le=8)
    gain: float = setting(0.15, "brightness factor exp(u), u uniform in +-gain, of the stored intensity", ge=0, le=2)
    gamma: float = setting(0.15, "exponent exp(u), u uniform in +-gamma, of the stored intensity", ge=0, le=2)


def augment(
    images: torch.Tensor, targets: torch.Tensor, config: AugmentConfig, *, seed: int, step: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """New images float32 (B, C, H, W) in [-1, 1] and targets float32 (B, K, H, W), moved alike.

    Enlarged targets are interpolated linearly, so they stay distributions (and sum to less than 1 next to ignored
    pixels, which the losses then leave out).
    """
    draws = [numpy_rng(seed, "students/augment", step, row) for row in range(len(images))]
    x, y = torch.empty_like(images), torch.empty_like(targets)
    height, width = images.shape[2:]
    for row, rng in enumerate(draws):
        pair = (images[row], targets[row])
        if config.dihedral:
            pair = _turn(pair, int(rng.integers(8)), square=height == width)
        if rng.random() < config.zoom_share:
            pair = _zoom(pair, float(np.exp(rng.uniform(0.0, np.log(config.zoom_max)))), rng.random(2))
        x[row], y[row] = pair
    gain, gamma = (
        torch.tensor([np.exp(rng.uniform(-s, s)) for rng in draws], dtype=x.dtype)[:, None, None, None]
        for s in (config.gain, config.gamma)
    )
    intensity = (((x + 1.0) / 2.0).clamp(0.0, 1.0) ** gamma * gain).clamp(0.0, 1.0)
    return intensity * 2.0 - 1.0, y


Pair = tuple[torch.Tensor, torch.Tensor]


def _turn(pair: Pair, which: int, *, square: bool) -> Pair:
    if not square:  # half turns alone keep the shape
        which = 2 * (which % 2) + which // 4 * 4
    return turn(pair[0], which), turn(pair[1], which)


def _zoom(pair: Pair, factor: float, corner: np.ndarray) -> Pair:
    height, width = pair[0].shape[1:]
    rows, cols = max(1, round(height / factor)), max(1, round(width / factor))
    top, left = int(corner[0] * (height - rows + 1)), int(corner[1] * (width - cols + 1))
    both = torch.cat(pair)[None, :, top : top + rows, left : left + cols]
    both = F.interpolate(both, (height, width), mode="bilinear", align_corners=False)[0]
    return both[: len(pair[0])], both[len(pair[0]) :]
