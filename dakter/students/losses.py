"""Losses on soft targets. A hard label is the soft label with all its mass on one class, so one formula serves both.

Targets are float32 (B, K, H, W) that sum to 1 over K where a pixel is labelled and to less where it is not (0, or a
part after interpolation next to an ignored pixel); such pixels are left out everywhere.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


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


def cross_entropy(logits: torch.Tensor, target: torch.Tensor, row_weight: torch.Tensor) -> torch.Tensor:
    """``-sum_k q_k log p_k``, mean over the labelled pixels, each row times its weight.

    With weight 1 for every row this is the plain mean over the batch, whatever the mix of real and generated rows;
    for soft ``q`` it equals the distillation loss KL(q || p) up to the entropy of ``q`` (Hinton et al. 2015,
    1503.02531, eq. 2-3, here without tempering the student).

    Args:
        logits: (B, K, H, W).
        target: (B, K, H, W), see the module.
        row_weight: (B,).
    """
    mask = labelled(target)
    per_pixel = -(target * F.log_softmax(logits.float(), dim=1)).sum(1)
    return (per_pixel * mask * row_weight[:, None, None]).sum() / mask.sum().clamp_min(1.0)


def soft_dice(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Dice semimetric loss over the batch, mean over classes, in [0, 1].

    Per class ``1 - (|p + q| - |p - q|) / (|p| + |q|)`` in L1 norms (Wang et al. 2023, 2303.16296, DML1): for hard q
    the ordinary soft Dice loss, and for soft q smallest at p = q, which the usual ``2 sum(pq)`` is not. The ratio is
    blind where a class has no mass in the batch (it would be 1 for any prediction); there the loss is the mean
    probability wrongly given to the class, so that false alarms still cost.
    """
    mask = labelled(target)[:, None]
    p, q = logits.float().softmax(1) * mask, target * mask
    axes = (0, 2, 3)
    mass_p, mass_q, apart = p.sum(axes), q.sum(axes), (p - q).abs().sum(axes)
    total = mass_p + mass_q
    present = 1.0 - (total - apart) / total.clamp_min(1e-6)
    absent = mass_p / mask.sum().clamp_min(1.0)
    return torch.where(mass_q > 0, present, absent).mean()
