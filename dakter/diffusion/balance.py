"""The balancing factor b, and labels on their way into and out of the diffusion.

A label enters as ``y = b * (2 * onehot - 1)``: ``b`` in the true class, ``-b`` in the others, 0 everywhere in a pixel
that is not labelled. The paper (DAKTer, 2412.08116) scales labels so that image and label have the same
signal-to-noise ratio at every level; equal power gives ``b = sqrt(E[x^2] / E[y^2])``, and ``E[y^2] = 1`` for y in
{-1, +1}. The paper's own formula could not be read; this is our reading of it.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from dakter.errors import DataError
from dakter.schema import IGNORE, to_model


def balancing_factor(images: np.ndarray, variant: Literal["rms", "std"] = "rms") -> float:
    """b of stored images ``(N, C, H, W)``: their root mean square, or standard deviation, on the model scale.

    Raises:
        DataError: there are no images, or they are constant (std) or zero.
    """
    if not images.size:
        raise DataError("b is to be taken from the training images, and there are none; set diffusion.b")
    power = mean = 0.0
    for image in images:  # one at a time: a whole set in float64 would not fit
        x = to_model(image).double()
        power += float((x * x).mean()) / len(images)
        mean += float(x.mean()) / len(images)
    b = float(np.sqrt(power if variant == "rms" else max(0.0, power - mean * mean)))
    if not b > 1e-6:
        raise DataError(f"the {variant} of the training images is {b:g}; expected images with contrast, or set b")
    return b


def chosen_b(b: float | None, variant: Literal["rms", "std"], b_rms: float, b_std: float) -> float:
    """The b to train with: the one set, else that of the corpus by ``variant``."""
    return b if b is not None else (b_rms if variant == "rms" else b_std)


def class_weights(labels: np.ndarray, num_classes: int, power: float) -> torch.Tensor | None:
    """Weight of each class in the label loss, float32 ``(K,)``: its share of labelled pixels to ``-power``.

    Scaled to a mean of 1 over labelled pixels; 1 for a class that has none. None: nothing is weighed.

    Args:
        labels: uint8, classes or IGNORE.
    """
    if not power:
        return None
    counts = np.zeros(256)
    for one in labels:  # one at a time: counting wants eight bytes a pixel
        counts += np.bincount(one.ravel(), minlength=256)
    counts, weights = counts[:num_classes], np.ones(num_classes)
    if (seen := counts > 0).any():
        weights[seen] = (counts[seen] / counts.sum()) ** -power
        weights[seen] /= (weights * counts).sum() / counts.sum()
    return torch.from_numpy(weights.astype(np.float32))


def enter_labels(labels_BHW: torch.Tensor, num_classes: int, b: float) -> torch.Tensor:
    """Class maps (integers, IGNORE allowed) to clean label input ``(B, K, H, W)`` float32 in {-b, 0, b}."""
    known = labels_BHW != IGNORE
    index = torch.where(known, labels_BHW, 0).long().unsqueeze(1)
    y = torch.full((labels_BHW.shape[0], num_classes, *labels_BHW.shape[1:]), -b, device=labels_BHW.device)
    return y.scatter_(1, index, b) * known.unsqueeze(1)


def probabilities(logits_BKHW: torch.Tensor, label_loss: Literal["ce", "mse"]) -> torch.Tensor:
    """What the label branch says, as soft labels float32 ``(B, K, H, W)`` summing to 1.

    Under cross-entropy the branch gives logits. Under mse it estimates ``2 p - 1``, which is clipped to [0, 1] and
    normalised (an evenly spread pixel where nothing is left).
    """
    out = logits_BKHW.float()
    if label_loss == "ce":
        return torch.softmax(out, dim=1)
    p = ((out + 1) / 2).clamp(0, 1) + 1e-8
    return p / p.sum(1, keepdim=True)


def reenter(soft_BKHW: torch.Tensor, b: float) -> torch.Tensor:
    """Clean label estimate of the sampler, ``b * (2 p - 1)``."""
    return b * (2 * soft_BKHW - 1)
