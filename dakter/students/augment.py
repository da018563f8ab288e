"""Augmentation, the same for every arm and for real and generated rows: dihedral, zoom, brightness.

What happens to a row depends on (seed, step, row) alone, also in a second view of it.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from dakter.config import setting
from dakter.rng import numpy_rng
from dakter.turns import turn
from dakter.views import ViewConfig, brighten, draw_crop, enlarge


class AugmentConfig(ViewConfig):
    """Strengths; zero or false switches a part off."""

    dihedral: bool = setting(True, "one of the 8 flips and quarter turns (4 that keep the shape of oblong tiles)")


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
            which = _fitting(int(rng.integers(8)), square=height == width)
            pair = (turn(pair[0], which), turn(pair[1], which))
        crop = draw_crop(rng, config, height, width)
        if crop:
            pair = (enlarge(pair[0], crop), enlarge(pair[1], crop))
        x[row], y[row] = pair
    return brighten(x, draws, config), y


def second_view(
    images: torch.Tensor, config: AugmentConfig, *, seed: int, step: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Another view of images float32 (B, C, H, W) in [-1, 1]: cropped, turned and brightened anew, as ``config`` says.

    Returns:
        The view, same shape and range, and the geometry that led to it, float32 (B, 2, 3): ``warp`` by it moves
        whatever belongs to the images to its place in the view, which lies within the images.
    """
    draws = [numpy_rng(seed, "students/second-view", step, row) for row in range(len(images))]
    square = images.shape[2] == images.shape[3]
    theta = torch.tensor(np.stack([_geometry(rng, config, square) for rng in draws]), dtype=torch.float32)
    return brighten(warp(images, theta), draws, config), theta


def warp(values: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
    """Values (B, K, H, W) at the places that affine maps (B, 2, 3) from output to input point to, between -1 and 1.

    Bilinear, so that distributions stay distributions.
    """
    grid = F.affine_grid(theta, list(values.shape), align_corners=False)
    return F.grid_sample(values, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _geometry(rng: np.random.Generator, config: AugmentConfig, square: bool) -> np.ndarray:
    """Crop, then ``turn``, as a map from places of the view to places of the image, float64 (2, 3)."""
    linear = np.eye(2)
    if config.dihedral:
        which = _fitting(int(rng.integers(8)), square=square)
        quarter, flip = np.array([[0.0, -1.0], [1.0, 0.0]]), np.diag([-1.0, 1.0])  # on (x, y), y downwards
        linear = np.linalg.matrix_power(quarter, which % 4) @ (flip if which >= 4 else linear)
    size, corner = 1.0, np.zeros(2)
    if rng.random() < config.zoom_share:
        size = float(np.exp(-rng.uniform(0.0, np.log(config.zoom_max))))
        corner = (1.0 - size) * rng.uniform(-1.0, 1.0, 2)
    return np.column_stack([size * linear, corner])


def _fitting(which: int, *, square: bool) -> int:
    """One of the turns that keep the shape, from one of all eight: of oblong tiles half turns alone do."""
    return which if square else 2 * (which % 2) + which // 4 * 4
