"""The training loss: an image loss in v or x0, and cross-entropy (or mse) on the label.

Cross-entropy may weigh classes: with weights w its minimum is the softmax q ~ w p of the posterior p, so q is the
softmax of ``logits + log w``, and that of the logits alone stays p (cf. the logit adjustment of Menon et al.,
2007.07314). What a rare class has to say is heard, and soft labels remain probabilities.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn import functional

from dakter.diffusion.schedule import DiffusionConfig, alpha_sigma
from dakter.schema import IGNORE


class Losses(NamedTuple):
    """Sums over the rows of one rank, to be divided by row counts of the whole batch.

    ``consistency``: cross-entropy to what the mean teacher says; None without one.
    """

    image: torch.Tensor
    label: torch.Tensor
    consistency: torch.Tensor | None = None


def image_target(x_BCHW: torch.Tensor, noise_BCHW: torch.Tensor, t_B: torch.Tensor, objective: str) -> torch.Tensor:
    """v = alpha * noise - sigma * x (Salimans and Ho, 2202.00512), or the clean image."""
    if objective == "x0":
        return x_BCHW
    alpha, sigma = (a.view(-1, 1, 1, 1).to(x_BCHW.device) for a in alpha_sigma(t_B))
    return alpha * noise_BCHW - sigma * x_BCHW


def clean_image(out: torch.Tensor, noisy: torch.Tensor, t_B: torch.Tensor, objective: str) -> torch.Tensor:
    """The clean image that the image branch's output stands for; inverse of ``image_target``."""
    if objective == "x0":
        return out
    alpha, sigma = (a.view(-1, 1, 1, 1).to(out.device) for a in alpha_sigma(t_B))
    return alpha * noisy - sigma * out


def snr_weight(t_B: torch.Tensor, objective: str, gamma: float | None) -> torch.Tensor:
    """Weight of a row's image loss by its level: 1, or Min-SNR (Hang et al., 2303.09556, eq. 8 and its table 1).

    With gamma the weight of the error in x0 is min(SNR, gamma); in units of v that is min(SNR, gamma) / (SNR + 1).
    """
    if gamma is None:
        return torch.ones_like(t_B)
    alpha, sigma = alpha_sigma(t_B)
    power, noise = alpha.square(), sigma.square()
    # both forms times sigma^2 / sigma^2, so that nothing divides by zero at t = 0
    capped = torch.minimum(power, gamma * noise)
    return capped if objective == "v" else capped / noise.clamp_min(1e-12)


def image_loss_B(out: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean squared error of each row, float32."""
    return (out.float() - target).square().mean((1, 2, 3))


def label_loss_B(
    logits_BKHW: torch.Tensor, labels_BHW: torch.Tensor, kind: str, weight_K: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean over the labelled pixels of each row (0 for a row without any), float32.

    ``ce``: cross-entropy in nats, classes weighed by ``weight``. ``mse``: squared error to {-1, +1}, averaged over
    classes.
    """
    logits, known = logits_BKHW.float(), labels_BHW != IGNORE
    target = torch.where(known, labels_BHW, 0).long()
    if kind == "ce":
        loss = functional.cross_entropy(_weighed(logits, weight_K), target, weight=weight_K, reduction="none")
    else:
        onehot = functional.one_hot(target, logits.shape[1]).movedim(-1, 1).to(logits.dtype)
        loss = (logits - (2 * onehot - 1)).square().mean(1)
    return (loss * known).sum((1, 2)) / known.sum((1, 2)).clamp_min(1)


def soft_label_loss_B(
    logits_BKHW: torch.Tensor, soft_BKHW: torch.Tensor, weight_K: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean over the pixels of each row of the cross-entropy to ``soft`` in nats, float32; 0 where that is all 0.

    Classes are weighed as those of hard labels are.
    """
    heard = soft_BKHW if weight_K is None else soft_BKHW * weight_K[:, None, None]
    return -(heard * _weighed(logits_BKHW.float(), weight_K).log_softmax(1)).sum(1).mean((1, 2))


def _weighed(logits_BKHW: torch.Tensor, weight_K: torch.Tensor | None) -> torch.Tensor:
    """Logits whose softmax is that of ``logits`` times the weights, normalised."""
    return logits_BKHW if weight_K is None else logits_BKHW + weight_K.log()[:, None, None]


def carries_image(config: DiffusionConfig, t_x: float, t_y: float, labelled: bool) -> bool:
    """Whether a row's image loss counts: not where the image is clean, and nothing is to be learned about it."""
    return not (labelled and config.mode == "independent" and t_x == config.clean_t and t_y == 1.0)


def carries_label(config: DiffusionConfig, t_y: float, labelled: bool) -> bool:
    """Whether a row's label loss counts: not without a label, nor where the label is the clean input."""
    return labelled and not (config.mode == "independent" and t_y == config.clean_t)


def losses(
    config: DiffusionConfig,
    out_image: torch.Tensor,
    out_logits: torch.Tensor,
    *,
    x_BCHW: torch.Tensor,
    noise_BCHW: torch.Tensor,
    labels_BHW: torch.Tensor,
    t_x_B: torch.Tensor,
    on_image_B: torch.Tensor,
    on_label_B: torch.Tensor,
    teacher_BKHW: torch.Tensor | None = None,
    weight_K: torch.Tensor | None = None,
) -> Losses:
    """Unweighted sums over rows; ``on_*_B`` are 1 where the row carries that loss and 0 elsewhere.

    ``teacher``: see ``teacher_probabilities``. ``weight``: of classes.
    """
    target = image_target(x_BCHW, noise_BCHW, t_x_B, config.objective)
    weight = snr_weight(t_x_B, config.objective, config.min_snr_gamma)
    image = (image_loss_B(out_image, target) * weight * on_image_B).sum()
    label = (label_loss_B(out_logits, labels_BHW, config.label_loss, weight_K) * on_label_B).sum()
    if teacher_BKHW is None:
        return Losses(image, label)
    return Losses(image, label, soft_label_loss_B(out_logits, teacher_BKHW, weight_K).sum())
