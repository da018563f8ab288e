"""Soft labels against true class fractions of pixels, which simulated scenes know, by proper scores.

Fractions are mixtures within a pixel, not posteriors: what can be asked is how far a label is from them, not whether
it is calibrated.
"""

from __future__ import annotations

import numpy as np

from dakter.errors import DataError
from dakter.evaluate.scores import Predict, number, predicted
from dakter.metrics import FLOOR
from dakter.schema import IGNORE


def fraction_sums(probabilities: np.ndarray, fractions: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Per-image sums, float64 ``(N, 3)``: cross-entropy in nats, Brier score, and labelled pixels.

    Of a pixel with fractions f and label p the cross-entropy is ``-sum_k f_k log p_k``, p at least ``FLOOR``: least,
    and then the entropy of f, at p = f. Its Brier score is ``sum_k (p_k - f_k)^2``, in [0, 2] (Gneiting & Raftery 2007,
    for a class drawn from f, but for a constant). Divide by the last column.

    Args:
        probabilities: ``(N, K, H, W)``.
        fractions: true ones, same shape, summing to 1 over K.
        labels: ``(N, H, W)``, of which IGNORE leaves pixels out.

    Raises:
        DataError: shapes that do not fit.
    """
    if probabilities.shape != fractions.shape or labels.shape != (len(fractions), *fractions.shape[2:]):
        raise DataError(
            f"probabilities {probabilities.shape}, fractions {fractions.shape}, labels {labels.shape}; expected twice "
            "(N, K, H, W), and (N, H, W)"
        )
    known = labels != IGNORE
    p, f = probabilities.astype(np.float64), fractions.astype(np.float64)
    entropy = -(f * np.log(np.maximum(p, FLOOR))).sum(axis=1)
    brier = np.square(p - f).sum(axis=1)
    return np.stack([(entropy * known).sum((1, 2)), (brier * known).sum((1, 2)), known.sum((1, 2))], axis=1)


def against_fractions(
    predict: Predict, images: np.ndarray, labels: np.ndarray, fractions: np.ndarray, *, chunk: int
) -> dict[str, float | None]:
    """``cross_entropy`` (nats) and ``brier`` a pixel of predictions for images; null without a labelled pixel.

    Args:
        predict, images, labels, chunk: as for ``scores.score``.
        fractions: ``(N, K, H, W)``, see ``fraction_sums``.

    Raises:
        DataError: predictions that are no probabilities of K classes for these images, or no image.
    """
    sums, done = np.zeros(3), 0
    for probabilities, true in predicted(predict, images, labels, fractions.shape[1], chunk):
        sums += fraction_sums(probabilities, fractions[done : done + len(true)], true).sum(axis=0)
        done += len(true)
    return means(sums)


def means(sums: np.ndarray) -> dict[str, float | None]:
    """``cross_entropy`` and ``brier`` a pixel from the summed columns of ``fraction_sums``."""
    per_pixel = np.divide(sums[:2], sums[2], out=np.full(2, np.nan), where=sums[2] > 0)
    return {"cross_entropy": number(per_pixel[0]), "brier": number(per_pixel[1])}
