"""A mean teacher for p(y | x): the averaged weights label unlabelled images while training runs.

After Tarvainen and Valpola (2017, 1703.01780): what the averaged weights say of an image becomes the target of the
network, which sees another view of it. Theirs is a squared error with other noise for each of the two; here it is a
cross-entropy, and both see the image in the same turn and with the same noise (of ``clean_t``), so that views alone
part them. The temperature is the sharpening of MixMatch (1905.02249). Only rows that ask for p(y | x) outright learn
so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from dakter.diffusion.batch import Batch
from dakter.diffusion.network import JointUNet, untold
from dakter.diffusion.schedule import add_noise
from dakter.diffusion.train_config import MeanTeacher
from dakter.errors import ConfigError
from dakter.views import enlarge


def count_taught(config: MeanTeacher, num_unlabelled: int) -> int:
    """How many of a batch's unlabelled rows learn so.

    Raises:
        ConfigError: the share is of too few rows to make one.
    """
    if not config.share or not num_unlabelled:
        return 0
    count = round(config.share * num_unlabelled)
    if not count:
        raise ConfigError(
            f"train.mean_teacher.share is {config.share:g} of {num_unlabelled} unlabelled rows in a batch; expected "
            f"one row at least: raise it to {1 / num_unlabelled:.2g}, or set it to 0"
        )
    return count


@torch.no_grad()
def answers(
    network: JointUNet,
    averaged: Mapping[str, torch.Tensor],
    plain_TCHW: torch.Tensor,
    noise_x_TCHW: torch.Tensor,
    noise_y_TKHW: torch.Tensor,
    t_x_T: torch.Tensor,
    t_y_T: torch.Tensor,
    *,
    temperature: float,
) -> torch.Tensor:
    """What the averaged weights say of plain images: probabilities float32 ``(T, K, H, W)``.

    Args:
        network: the network that is trained; its dropout is off meanwhile.
        averaged: the teacher: weights in place of its own, by name.
        plain_TCHW: images, before any view of them is taken; the rest is of their rows in a ``Batch``.
        temperature: T of p^(1/T), renormalised.
    """
    x = add_noise(plain_TCHW, noise_x_TCHW, t_x_T)
    told = untold(network.table, plain_TCHW)
    was = network.training
    network.eval()
    try:
        out = torch.func.functional_call(network, dict(averaged), (x, noise_y_TKHW, t_x_T, t_y_T, told))
    finally:
        network.train(was)
    return (out.logits.float() / temperature).softmax(1)


@torch.no_grad()
def teacher_probabilities(answer: Callable[..., torch.Tensor], batch: Batch) -> torch.Tensor:
    """The teacher's answers for the taught rows, seen in the rows' own crops.

    Args:
        answer: ``answers`` of a network and its average, for the tensors of the taught rows.
        batch: rows, on the device of both.

    Returns:
        Probabilities float32 ``(B, K, H, W)``; 0 in all other rows.
    """
    found = torch.zeros_like(batch.noise_y_BKHW)
    if not batch.taught:
        return found
    taught = list(batch.taught)
    rows = (batch.noise_x_BCHW, batch.noise_y_BKHW, batch.t_x_B, batch.t_y_B)
    soft = answer(batch.plain_TCHW, *(values[taught] for values in rows))
    found[taught] = torch.stack([enlarge(p, crop) if crop else p for p, crop in zip(soft, batch.crops, strict=True)])
    return found
