"""Noise levels: the continuous cosine schedule, its discrete twin for diffusers, and how (t_x, t_y) are drawn.

``t`` runs from 0 (clean) to 1 (pure noise); a noisy value is ``alpha(t) * clean + sigma(t) * noise`` with
``alpha(t) = cos(pi t / 2)``, ``sigma(t) = sin(pi t / 2)`` (variance preserving; the cosine schedule of Nichol and
Dhariwal 2102.09672 without its offset). At ``t = 1`` alpha is exactly 0 (zero terminal SNR, Lin et al. 2305.08891):
the input is N(0, I) itself and carries nothing of the clean value.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import model_validator

from dakter.config import Config, setting
from dakter.errors import ConfigError

SchedulerName = Literal["dpmpp_2m", "ddim", "ddpm"]

_SCHEDULERS = {"dpmpp_2m": "DPMSolverMultistepScheduler", "ddim": "DDIMScheduler", "ddpm": "DDPMScheduler"}


class DiffusionConfig(Config):
    """What is noised, by how much, and what the network is asked for.

    The four shares are of rows of a training batch that hold a label (mode ``independent``):

    * *equal*: t_x = t_y, uniform: the joint p(x, y);
    * *independent*: t_x and t_y drawn apart: every conditional in between (UniDiffuser, 2303.06555);
    * *image clean*: t_x = clean_t, t_y = 1: p(y | x), what a soft label is read from;
    * *label clean*: t_y = clean_t, t_x uniform: p(x | y), what drawing an image for a given label map needs.

    The first look behind these defaults had a half, a third, a sixth and none; a twentieth is taken from the others
    for p(x | y).
    """

    later: ClassVar[tuple[str, ...]] = ("rare_class_power",)

    mode: Literal["joint", "independent"] = setting(
        "independent", "noise levels of image and label: joint (one level, the paper) or independent"
    )
    objective: Literal["v", "x0"] = setting("v", "what the image branch predicts: v (2202.00512) or the clean image")
    num_timesteps: int = setting(1000, "discrete noise levels that diffusers' schedulers see", ge=2, le=100_000)
    b: float | None = setting(
        None, "scale of the labels before noise (the paper's balancing factor); null: from the training images", gt=0
    )
    b_variant: Literal["rms", "std"] = setting("rms", "with b null: root mean square or standard deviation of images")
    share_equal: float = setting(0.5, "share of rows with t_x = t_y", ge=0, le=1)
    share_independent: float = setting(0.3, "share of rows with t_x and t_y drawn apart", ge=0, le=1)
    share_image_clean: float = setting(0.15, "share of rows with a clean image and an unknown label", ge=0, le=1)
    share_label_clean: float = setting(0.05, "share of rows with a clean label and a noisy image", ge=0, le=1)
    clean_t: float = setting(
        0.01,
        "noise level that counts as clean, in training and in use; 0.01 is noise of 1.6 % of full scale, as much as a "
        "generated image is off the data",
        ge=0,
        le=0.1,
    )
    label_loss: Literal["ce", "mse"] = setting("ce", "loss of the label branch: cross-entropy, or mse (the baseline)")
    rare_class_power: float = setting(
        0.0,
        "classes weigh in the cross-entropy of labels by their share of labelled pixels to the power of minus this, "
        "which is divided out of the softmax again; 0: all weigh the same",
        ge=0,
        le=1,
    )
    image_weight: float = setting(1.0, "weight of the image loss", ge=0)
    label_weight: float = setting(1.0, "weight of the label loss", ge=0)
    min_snr_gamma: float | None = setting(
        None,
        "Min-SNR weighting of the image loss (2303.09556); null: every level weighs the same in the objective's "
        "own unit",
        gt=0,
    )

    @model_validator(mode="after")
    def _shares_sum_to_one(self) -> Self:
        total = self.share_equal + self.share_independent + self.share_image_clean + self.share_label_clean
        if self.mode == "independent" and abs(total - 1) > 1e-6:
            raise ValueError(
                f"share_equal + share_independent + share_image_clean + share_label_clean = 1, not {total:g}"
            )
        return self

    @model_validator(mode="after")
    def _only_cross_entropy_is_weighed(self) -> Self:
        if self.rare_class_power and self.label_loss != "ce":
            raise ValueError(f"rare_class_power 0 with label_loss {self.label_loss}, or label_loss ce")
        return self


def alpha_sigma(t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Signal and noise amplitude at ``t`` in [0, 1], float32; exactly (1, 0) at 0 and (0, 1) at 1."""
    half = t.double() * (math.pi / 2)
    alpha = torch.where(t >= 1, 0.0, torch.cos(half))
    sigma = torch.where(t >= 1, 1.0, torch.sin(half))
    return alpha.float(), sigma.float()


def add_noise(clean: torch.Tensor, noise: torch.Tensor, t_B: torch.Tensor) -> torch.Tensor:
    """``alpha * clean + sigma * noise``, ``(B, C, H, W)``; a level per row."""
    alpha, sigma = (a.view(-1, 1, 1, 1).to(clean.device) for a in alpha_sigma(t_B))
    return alpha * clean + sigma * noise


def continuous_t(timestep: int, num_timesteps: int) -> float:
    """``t`` of a scheduler's integer timestep ``0 .. num_timesteps - 1``: the last is pure noise, t = 1."""
    return (timestep + 1) / num_timesteps


def build_scheduler(name: SchedulerName, num_timesteps: int) -> Any:
    """A diffusers scheduler whose level ``i`` is ``t = (i + 1) / num_timesteps`` of the continuous schedule.

    It steps clean predictions (``prediction_type="sample"``), which is the one language in which image (v or x0) and
    label (softmax) branches meet; trailing spacing, so that sampling starts at t = 1. DPM-Solver++ works in log-SNR
    and puts alpha = 2**-12 in place of 0 there; the state it starts from is N(0, I) all the same.
    """
    t = np.arange(1, num_timesteps + 1) / num_timesteps
    alpha_bar = np.cos(t * np.pi / 2) ** 2
    alpha_bar[-1] = 0.0
    betas = 1.0 - alpha_bar / np.concatenate([[1.0], alpha_bar[:-1]])
    config = {
        "num_train_timesteps": num_timesteps,
        "trained_betas": betas.tolist(),
        "prediction_type": "sample",
        "timestep_spacing": "trailing",
        "rescale_betas_zero_snr": True,  # finds them already so; DPM-Solver++ needs it to keep log-SNR finite
        "clip_sample": False,  # the sampler clips the image itself; labels reach to b
    }
    import diffusers  # here: it costs 100 MB, and the driver of a generation only reads settings

    return getattr(diffusers, _SCHEDULERS[name]).from_config(config)


def same_levels(scheduler: Any, name: SchedulerName) -> Any:
    """A fresh scheduler of another kind with the noise levels of ``scheduler`` (a diffusers scheduler)."""
    return build_scheduler(name, int(scheduler.config.num_train_timesteps))


def set_steps(scheduler: Any, steps: int) -> list[int]:
    """Prepare ``scheduler`` for ``steps`` evaluations and return its timesteps, noisiest first.

    Raises:
        ConfigError: more steps than levels, or a DDIM step count that does not divide the number of levels (its
            update assumes equal strides).
    """
    levels = int(scheduler.config.num_train_timesteps)
    if not 1 <= steps <= levels:
        raise ConfigError(f"sampler.steps is {steps}; expected 1 to {levels} (diffusion.num_timesteps)")
    if type(scheduler).__name__ == _SCHEDULERS["ddim"] and levels % steps:
        raise ConfigError(f"sampler.steps is {steps}; DDIM needs a divisor of {levels} (diffusion.num_timesteps)")
    scheduler.set_timesteps(steps)
    return [int(timestep) for timestep in scheduler.timesteps]


def draw_levels(config: DiffusionConfig, rng: np.random.Generator, *, labelled: bool) -> tuple[float, float]:
    """(t_x, t_y) of one training row; an unlabelled row has t_y = 1, its label being unknown.

    Uniform levels lie in (0, 1], so that pure noise, where sampling starts, belongs to training.
    """
    which, first, second = rng.random(3)
    t_x, t_y = 1.0 - float(first), 1.0 - float(second)
    if not labelled:
        return t_x, 1.0
    if config.mode == "joint" or which < config.share_equal:
        return t_x, t_x
    if which < config.share_equal + config.share_independent:
        return t_x, t_y
    if which < config.share_equal + config.share_independent + config.share_image_clean:
        return config.clean_t, 1.0
    return t_x, config.clean_t


def draws_images(config: DiffusionConfig, t_x_B: torch.Tensor, t_y_B: torch.Tensor) -> torch.Tensor:
    """Whether images are drawn at such levels, bool ``(B,)``: of p(x, y), p(x) or p(x | y)."""
    return (t_x_B == t_y_B) | (t_y_B == 1) | (t_y_B == config.clean_t)
