"""Losses on soft targets. A hard label is the soft label with all its mass on one class, so one formula serves both.

Targets are float32 (B, K, H, W) that sum to 1 over K where a pixel is labelled and to less where it is not (0, or a
part after interpolation next to an ignored pixel); such pixels are left out everywhere.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from dakter.students.augment import warp


def labelled(target: torch.Tensor) -> torch.Tensor:
    """1.0 where the target is a distribution, 0.0 where the pixel is to be ignored: float32 (B, H, W)."""
    return (target.sum(1) > 0.999).to(target.dtype)


def one_hot(labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Class maps (B, H, W), any integer type, to float32 (B, K, H, W); all zero where the label is no class."""
    classes = torch.arange(num_classes, device=labels.device, dtype=labels.dtype)
    return (labels[:, None] == classes[:, None, None]).float()


def temper(soft: torch.Tensor, temperature: float) -> torch.Tensor:
    """``q^(1/T)`` renormalised over axis 1: T < 1 sharpens, T > 1 softens, T = 1 leaves the label as it is."""
    if temperature == 1.0:
        return soft
    powered = soft.clamp_min(0.0).pow(1.0 / temperature)
    return powered / powered.sum(1, keepdim=True).clamp_min(1e-12)


def confidence(target: torch.Tensor, soft_rows: torch.Tensor, gamma: float) -> torch.Tensor:
    """Weights of pixels by how certain their labels are, float32 (B, H, W), at least 0.

    ``(1 - H(q) / log K)^gamma`` in the rows marked: 1 where q is one-hot, 0 where it is uniform; gamma = 1 is the
    weight of Iscen et al. 2019 (1904.04717) of a pseudo-labelled image. It is divided by its mean over the labelled
    pixels of those rows, so that weight moves from doubtful pixels to certain ones of a batch, and the weight of a row
    means what it did. All are 0 if every q is uniform. Pixels of other rows weigh 1.

    Args:
        target: (B, K, H, W), see the module.
        soft_rows: bool (B,), True where the label is soft.
        gamma: above 0.
    """
    soft = labelled(target) * soft_rows[:, None, None]
    certainty = 1.0 + torch.special.xlogy(target, target).sum(1) / math.log(target.shape[1])
    weight = certainty.clamp(0.0, 1.0).pow(gamma) * soft
    mean = weight.sum() / soft.sum().clamp_min(1.0)
    return torch.where(soft_rows[:, None, None], weight / mean.clamp_min(1e-6), 1.0)


def cross_entropy(
    logits: torch.Tensor, target: torch.Tensor, row_weight: torch.Tensor, pixel_weight: torch.Tensor | None = None
) -> torch.Tensor:
    """``-sum_k q_k log p_k``, mean over the labelled pixels, each row times its weight.

    With weight 1 for every row this is the plain mean over the batch, whatever the mix of real and generated rows;
    for soft ``q`` it equals the distillation loss KL(q || p) up to the entropy of ``q`` (Hinton et al. 2015,
    1503.02531, eq. 2-3, here without tempering the student).

    Args:
        logits: (B, K, H, W).
        target: (B, K, H, W), see the module.
        row_weight: (B,).
        pixel_weight: (B, H, W) of ``confidence``; None: 1.
    """
    mask = labelled(target)
    per_pixel = -(target * F.log_softmax(logits.float(), dim=1)).sum(1)
    weighed = per_pixel * mask * row_weight[:, None, None]
    if pixel_weight is not None:
        weighed = weighed * pixel_weight
    return weighed.sum() / mask.sum().clamp_min(1.0)


def soft_dice(logits: torch.Tensor, target: torch.Tensor, pixel_weight: torch.Tensor | None = None) -> torch.Tensor:
    """Dice semimetric loss over the batch, mean over classes, in [0, 1].

    Per class ``1 - (|p + q| - |p - q|) / (|p| + |q|)`` in L1 norms (Wang et al. 2023, 2303.16296, DML1): for hard q
    the ordinary soft Dice loss, and for soft q smallest at p = q, which the usual ``2 sum(pq)`` is not. The ratio is
    blind where a class has no mass in the batch (it would be 1 for any prediction); there the loss is the mean
    probability wrongly given to the class, so that false alarms still cost. With ``pixel_weight`` (B, H, W) every sum
    over pixels is a weighted one.
    """
    mask = labelled(target)[:, None]
    if pixel_weight is not None:
        mask = mask * pixel_weight[:, None]
    p, q = logits.float().softmax(1) * mask, target * mask
    axes = (0, 2, 3)
    mass_p, mass_q, apart = p.sum(axes), q.sum(axes), (p - q).abs().sum(axes)
    total = mass_p + mass_q
    present = 1.0 - (total - apart) / total.clamp_min(1e-6)
    absent = mass_p / mask.sum().clamp_min(1.0)
    return torch.where(mass_q > 0, present, absent).mean()


def consistency(
    first: torch.Tensor, second: torch.Tensor, theta: torch.Tensor, soft_rows: torch.Tensor
) -> torch.Tensor:
    """Squared distance of the probabilities of two views where they show the same place, in [0, 2].

    Summed over classes, mean over pixels and over the batch, rows not marked adding 0: so, like ``cross_entropy``, it
    counts for more the more marked rows there are. Gradients flow through both views (the Pi-model of Laine & Aila
    2017, 1610.02242, on every pixel); labels do not enter, nor what is not labelled.

    Args:
        first: logits (B, K, H, W) of images.
        second: logits (B, K, H, W) of their ``second_view``.
        theta: of that view; the first view's probabilities are moved by it.
        soft_rows: bool (B,), the rows that count.
    """
    apart = warp(first.float().softmax(1), theta) - second.float().softmax(1)
    return (apart.square().sum(1).mean((1, 2)) * soft_rows).mean()
