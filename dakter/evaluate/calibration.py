"""Calibration of predicted probabilities: proper scores first, then class-wise calibration error, and a temperature.

All are taken a pixel, pixels labelled IGNORE left out. Probabilities come as ``(N, K, H, W)`` in [0, 1], summing to 1
over K; labels as ``(N, H, W)`` class indices or IGNORE.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar

from dakter.errors import DataError
from dakter.metrics import FLOOR, label_probability, log_loss
from dakter.schema import IGNORE

# Equal-width bins of class-wise ECE; 15, as is usual.
NUM_BINS = 15
# Temperatures searched. Beyond them the probabilities say nothing of the labels, or everything.
TEMPERATURE_RANGE = (0.1, 10.0)


def proper_sums(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Per-image sums of proper scores, float64 ``(N, 3)``: NLL in nats, Brier score, and labelled pixels.

    NLL of a pixel is -log p of its class, with p at least ``FLOOR``. Its Brier score is the squared distance to the
    one-hot label summed over classes (Brier 1950), in [0, 2]. Divide a column's sum by that of the last.
    """
    _check(probabilities, labels)
    known = labels != IGNORE
    of_label = label_probability(probabilities, labels)
    # sum_k (p_k - y_k)^2 = sum_k p_k^2 - 2 p_y + 1
    brier = np.einsum("nkhw,nkhw->nhw", probabilities, probabilities, dtype=np.float64) - 2 * of_label + 1
    axes = (1, 2)
    return np.stack([log_loss(probabilities, labels).sum(axes), (brier * known).sum(axes), known.sum(axes)], axis=1)


def temper(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """``q^(1/T)`` renormalised over axis 1, same shape and dtype: logits divided by T (Guo et al. 2017, eq. 9)."""
    if temperature == 1.0:
        return probabilities
    logits = np.log(np.maximum(probabilities, FLOOR)) / temperature
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (powers / powers.sum(axis=1, keepdims=True)).astype(probabilities.dtype)


def fit_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The temperature of least NLL, within ``TEMPERATURE_RANGE``; for val, never for test.

    Args:
        probabilities: ``(P, K)`` of P pixels.
        labels: ``(P,)`` class indices; IGNORE is left out.

    Raises:
        DataError: no labelled pixel.
    """
    known = labels != IGNORE
    if not known.any():
        raise DataError(
            "no labelled validation pixel to fit a temperature on; expected some: check the labels of the val split"
        )
    logs = np.log(np.maximum(probabilities[known].astype(np.float64), FLOOR))
    of_label = np.take_along_axis(logs, labels[known].astype(np.int64)[:, None], axis=1)[:, 0]

    def nll(log_temperature: float) -> float:
        scaled = logs / math.exp(log_temperature)
        top = scaled.max(axis=1)
        normaliser = top + np.log(np.exp(scaled - top[:, None]).sum(axis=1))
        return float((normaliser - of_label / math.exp(log_temperature)).mean())

    bounds = (math.log(TEMPERATURE_RANGE[0]), math.log(TEMPERATURE_RANGE[1]))
    return math.exp(float(minimize_scalar(nll, bounds=bounds, method="bounded", options={"xatol": 1e-4}).x))


@dataclass(frozen=True)
class Reliability:
    """Class-wise reliability: what was claimed and what came true, in ``NUM_BINS`` equal bins of probability.

    Every pixel counts once for every class: with the probability it was given, and whether it was that class.

    Attributes:
        count: pixels, ``(K, NUM_BINS)``; bin i holds p in [i, i+1) / NUM_BINS, the last also 1.
        claimed: summed probabilities, same shape.
        true: pixels of the class, same shape.
    """

    count: np.ndarray
    claimed: np.ndarray
    true: np.ndarray

    @classmethod
    def of(cls, probabilities: np.ndarray, labels: np.ndarray) -> Reliability:
        """From probabilities ``(N, K, H, W)`` and labels ``(N, H, W)``; add those of further images with ``+``."""
        _check(probabilities, labels)
        known = labels != IGNORE
        true_class = labels[known]
        rows = []
        for k in range(probabilities.shape[1]):
            p = probabilities[:, k][known].astype(np.float64)
            bins = np.clip((p * NUM_BINS).astype(np.int64), 0, NUM_BINS - 1)
            weights = (None, p, (true_class == k).astype(np.float64))
            rows.append([np.bincount(bins, weights=w, minlength=NUM_BINS) for w in weights])
        count, claimed, true = (np.stack(column).astype(np.float64) for column in zip(*rows, strict=True))
        return cls(count, claimed, true)

    def __add__(self, other: Reliability) -> Reliability:
        return Reliability(self.count + other.count, self.claimed + other.claimed, self.true + other.true)

    def ece(self) -> np.ndarray:
        """Class-wise expected calibration error ``(K,)`` in [0, 1] (Kull et al. 2019, eq. 3); NaN without a pixel.

        The mean over pixels of the gap, in the pixel's bin, between mean probability and share of the class.
        """
        total = self.count.sum(axis=1)
        gap = np.abs(self.claimed - self.true).sum(axis=1)
        return np.divide(gap, total, out=np.full(len(total), np.nan), where=total > 0)

    def curve(self, k: int) -> dict[str, list[float | int | None]]:
        """For a reliability diagram of class k: mean probability, share of the class and pixels of each bin."""
        count = self.count[k]

        def mean(sums: np.ndarray) -> list[float | int | None]:
            return [float(s / c) if c else None for s, c in zip(sums, count, strict=True)]

        return {
            "confidence": mean(self.claimed[k]),
            "frequency": mean(self.true[k]),
            "count": [int(c) for c in count],
        }


def _check(probabilities: np.ndarray, labels: np.ndarray) -> None:
    if probabilities.ndim != 4 or labels.shape != (len(probabilities), *probabilities.shape[2:]):
        raise DataError(
            f"probabilities {probabilities.shape} and labels {labels.shape}; expected (N, K, H, W) and (N, H, W)"
        )
    highest = max((int(v) for v in np.unique(labels) if v != IGNORE), default=0)
    if highest >= probabilities.shape[1]:
        raise DataError(f"labels hold class {highest}; expected 0..{probabilities.shape[1] - 1} or {IGNORE} (ignore)")
