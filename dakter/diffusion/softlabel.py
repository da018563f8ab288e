"""Soft labels of generated images, and of any image.

The last step's softmax has the almost noise-free label as its input and copies it, hard as it is. The read-out asks the
network for the label of the finished image with nothing known about the label: t_x at the level that counts as clean
(``diffusion.clean_t``), t_y = 1, where cross-entropy draws the softmax to p(y | x).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch

from dakter import rng
from dakter.config import Config, setting
from dakter.diffusion.balance import reenter
from dakter.diffusion.sampler import Denoiser, reverse
from dakter.diffusion.schedule import add_noise


class SoftLabelConfig(Config):
    """Where soft labels come from."""

    mode: Literal["last_step", "readout", "chains"] = setting(
        "readout",
        "last_step: softmax of the sampler's last step (the paper); readout: p(y | x) at once, averaged over noise; "
        "chains: whole label chains given the image, averaged",
    )
    evaluations: int = setting(4, "noise draws of the read-out, or chains, averaged for one image", ge=1)
    chain_steps: int = setting(5, "network evaluations of one chain", ge=1)


def _level_noise(x: torch.Tensor, clean_t: float, seed: int, draw: int, indices: Sequence[int]) -> torch.Tensor:
    noise = rng.normal(tuple(x.shape[1:]), seed, "label/image-noise", draw, indices).to(x.device)
    return add_noise(x, noise, torch.full((len(x),), clean_t))


def readout(
    denoiser: Denoiser,
    x_BCHW: torch.Tensor,
    *,
    num_classes: int,
    clean_t: float,
    evaluations: int,
    seed: int,
    indices: Sequence[int],
) -> torch.Tensor:
    """p(y | x), float32 ``(B, K, H, W)``, the mean over ``evaluations`` draws of the label noise."""
    total = torch.zeros(len(x_BCHW), num_classes, *x_BCHW.shape[2:], device=x_BCHW.device)
    for draw in range(evaluations):
        y = rng.normal(tuple(total.shape[1:]), seed, "label/noise", draw, indices).to(x_BCHW.device)
        total += denoiser(_level_noise(x_BCHW, clean_t, seed, draw, indices), y, clean_t, 1.0)[1]
    return total / evaluations


def chains(
    denoiser: Denoiser,
    scheduler: Any,
    x_BCHW: torch.Tensor,
    *,
    num_classes: int,
    clean_t: float,
    num_chains: int,
    steps: int,
    seed: int,
    indices: Sequence[int],
) -> torch.Tensor:
    """Mean of the last softmax of ``num_chains`` label chains p(y | x), float32 ``(B, K, H, W)``."""
    total = torch.zeros(len(x_BCHW), num_classes, *x_BCHW.shape[2:], device=x_BCHW.device)
    for draw in range(num_chains):
        x = _level_noise(x_BCHW, clean_t, seed, draw, indices)
        y = rng.normal(tuple(total.shape[1:]), seed, "label/noise", draw, indices).to(x_BCHW.device)
        soft = total

        def predict(state: torch.Tensor, t: float, x: torch.Tensor = x) -> torch.Tensor:
            nonlocal soft
            soft = denoiser(x, state, clean_t, t)[1]
            return reenter(soft, denoiser.b)

        generators = [rng.torch_generator(seed, "label/steps", draw, int(i)) for i in indices]
        reverse(scheduler, steps, y, predict, generators)
        total = total + soft
    return total / num_chains
