"""p(y | x) of unlabelled images, asked of the averaged weights while training runs.

A mean teacher (Tarvainen and Valpola 2017, 1703.01780) for p(y | x): what the averaged weights say of an image as it is
becomes the target of the network, which sees another view of it. Only rows that ask for p(y | x) outright learn so.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from dakter.diffusion.batch import Batch
from dakter.diffusion.schedule import DiffusionConfig, add_noise
from dakter.diffusion.train_config import SelfLabels
from dakter.errors import ConfigError
from dakter.views import enlarge


def count_asked(config: SelfLabels, diffusion: DiffusionConfig, num_unlabelled: int) -> int:
    """How many of a batch's unlabelled rows learn so.

    Raises:
        ConfigError: the label branch gives no probabilities that cross-entropy could be taken to, or the share is of
            too few rows to make one.
    """
    if not config.share or not num_unlabelled:
        return 0
    if diffusion.label_loss != "ce":
        raise ConfigError(
            f"train.self_labels.share is {config.share:g} with diffusion.label_loss {diffusion.label_loss}; expected "
            "label_loss ce, whose softmax is the target: set the share to 0 or the loss to ce"
        )
    count = round(config.share * num_unlabelled)
    if not count:
        raise ConfigError(
            f"train.self_labels.share is {config.share:g} of {num_unlabelled} unlabelled rows in a batch; expected one "
            f"row at least: raise it to {1 / num_unlabelled:.2g}, or set it to 0"
        )
    return count


@torch.no_grad()
def answers(network: nn.Module, averaged: Mapping[str, torch.Tensor], batch: Batch, temperature: float) -> torch.Tensor:
    """What the averaged weights say of the plain images of the rows that ask, seen in the rows' own crops.

    Args:
        network: the network that is trained; its dropout is off for the asking.
        averaged: weights to ask in place of its own, by name.
        batch: rows, on the device of both.
        temperature: T of p^(1/T), renormalised.

    Returns:
        Probabilities float32 ``(B, K, H, W)``; 0 in all other rows.
    """
    found = torch.zeros_like(batch.noise_y_BKHW)
    if not batch.asked:
        return found
    asked = list(batch.asked)
    levels, unknown = batch.t_x_B[asked], batch.t_y_B[asked]
    x = add_noise(batch.plain_ACHW, batch.noise_x_BCHW[asked], levels)
    was = network.training
    network.eval()
    try:
        out = torch.func.functional_call(network, dict(averaged), (x, batch.noise_y_BKHW[asked], levels, unknown))
    finally:
        network.train(was)
    soft = (out.logits.float() / temperature).softmax(1)
    found[asked] = torch.stack([enlarge(p, crop) if crop else p for p, crop in zip(soft, batch.crops, strict=True)])
    return found
