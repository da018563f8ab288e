"""Soft labels of generated images, and of any image.

The last step's softmax has the almost noise-free label as its input and copies it, hard as it is. The read-out asks the
network for the label of the finished image with nothing known about the label: t_x at the level that counts as clean
(``diffusion.clean_t``), t_y = 1, where cross-entropy draws the softmax to p(y | x).

A model that learned from turned images (``train.dihedral``) is asked under another of the eight turns at each
evaluation, and the answers are turned back before they are averaged: eight evaluations see all of them. It costs
nothing over the noise draws, which alone hardly differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch

from dakter import rng
from dakter.config import Config, setting
from dakter.diffusion.balance import reenter
from dakter.diffusion.network import untold
from dakter.diffusion.sampler import Denoiser, reverse
from dakter.diffusion.schedule import add_noise
from dakter.turns import NUM_TURNS, turn, turn_back

# streams of dakter.rng
IMAGE_NOISE, LABEL_NOISE = "label/image-noise", "label/noise"


class SoftLabelConfig(Config):
    """Where soft labels come from."""

    mode: Literal["last_step", "readout", "chains"] = setting(
        "readout",
        "last_step: softmax of the sampler's last step (the paper); readout: p(y | x) at once, averaged over noise; "
        "chains: whole label chains given the image, averaged",
    )
    evaluations: int = setting(
        4, "evaluations of the read-out (each its own noise and turn), or chains, averaged for one image", ge=1
    )
    chain_steps: int = setting(5, "network evaluations of one chain", ge=1)


def _level_noise(x: torch.Tensor, clean_t: float, seed: int, draw: int, indices: Sequence[int]) -> torch.Tensor:
    noise = rng.normal(tuple(x.shape[1:]), seed, IMAGE_NOISE, draw, indices).to(x.device)
    return add_noise(x, noise, torch.full((len(x),), clean_t))


# (draw, height, width) -> standard normal noise (B or 1, channels, height, width), where the images are
DrawNoise = Callable[[int, int, int], torch.Tensor]


def average_readout(
    denoiser: Denoiser,
    x_BCHW: torch.Tensor,
    *,
    image_noise: DrawNoise,
    label_noise: DrawNoise,
    clean_t: float,
    evaluations: int,
    turned: bool,
) -> torch.Tensor:
    """p(y | x), float32 ``(B, K, H, W)``: the mean over ``evaluations`` given draws of the noise.

    Args:
        denoiser: the model.
        x_BCHW: images at model scale.
        image_noise: takes the image to ``clean_t``, and is turned with it.
        label_noise: the label input; asked for the size of the turned image.
        clean_t, evaluations, turned: as for ``readout``.
    """
    height, width = x_BCHW.shape[2:]
    levels = torch.full((x_BCHW.shape[0],), clean_t)
    told = untold(denoiser.table, x_BCHW)
    total: torch.Tensor | None = None
    for draw in range(evaluations):
        which = draw % NUM_TURNS if turned else 0
        x = turn(add_noise(x_BCHW, image_noise(draw, height, width), levels), which)
        y = label_noise(draw, *x.shape[2:]).expand(x.shape[0], -1, -1, -1)
        soft = turn_back(denoiser(x, y, clean_t, 1.0, told)[1], which)
        total = soft if total is None else total + soft
    assert total is not None, "at least one evaluation"
    return total / evaluations


def readout(
    denoiser: Denoiser,
    x_BCHW: torch.Tensor,
    *,
    num_classes: int,
    clean_t: float,
    evaluations: int,
    seed: int,
    indices: Sequence[int],
    turned: bool = False,
) -> torch.Tensor:
    """p(y | x), float32 ``(B, K, H, W)``, the mean over ``evaluations`` draws of the noise (``turned``: and turns)."""

    def noise(stream: str, channels: int) -> DrawNoise:
        return lambda draw, height, width: rng.normal((channels, height, width), seed, stream, draw, indices).to(
            x_BCHW.device
        )

    return average_readout(
        denoiser,
        x_BCHW,
        image_noise=noise(IMAGE_NOISE, x_BCHW.shape[1]),
        label_noise=noise(LABEL_NOISE, num_classes),
        clean_t=clean_t,
        evaluations=evaluations,
        turned=turned,
    )


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
    turned: bool = False,
) -> torch.Tensor:
    """Mean of the last softmax of ``num_chains`` label chains p(y | x), float32 ``(B, K, H, W)``; turns as above."""
    told = untold(denoiser.table, x_BCHW)
    total = torch.zeros(len(x_BCHW), num_classes, *x_BCHW.shape[2:], device=x_BCHW.device)
    for draw in range(num_chains):
        which = draw % NUM_TURNS if turned else 0
        x = turn(_level_noise(x_BCHW, clean_t, seed, draw, indices), which)
        y = rng.normal((num_classes, *x.shape[2:]), seed, LABEL_NOISE, draw, indices).to(x.device)
        soft = total

        def predict(state: torch.Tensor, t: float, x: torch.Tensor = x) -> torch.Tensor:
            nonlocal soft
            soft = denoiser(x, state, clean_t, t, told)[1]
            return reenter(soft, denoiser.b)

        generators = [rng.torch_generator(seed, "label/steps", draw, int(i)) for i in indices]
        reverse(scheduler, steps, y, predict, generators)
        total = total + turn_back(soft, which)
    return total / num_chains
