"""Segmentation scores from one confusion matrix, as the published tables of oil-spill detection report them.

One matrix over a whole set (rows true class, columns predicted), then intersection over union a class and its
unweighted mean. Pixels labelled ``IGNORE`` count nowhere.
"""

from __future__ import annotations

import numpy as np

from dakter.errors import DataError
from dakter.schema import IGNORE

# What float32 can tell from 0 beside 1: a confident error costs at most -log(1e-7) = 16.1 nats instead of infinity.
FLOOR = 1e-7


def log_loss(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """-log p of each pixel's class, p at least ``FLOOR``: float64 ``(N, H, W)`` in nats, 0 where labels are IGNORE.

    Args:
        probabilities: ``(N, K, H, W)``, summing to 1 over K.
        labels: ``(N, H, W)``, values 0..K-1 or IGNORE.
    """
    known = labels != IGNORE
    of_label = label_probability(probabilities, labels)
    return np.where(known, -np.log(np.maximum(of_label, FLOOR)), 0.0)


def label_probability(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Probability of each pixel's class, float64 ``(N, H, W)``; that of class 0 where labels are IGNORE."""
    index = np.where(labels != IGNORE, labels, 0).astype(np.int64)[:, None]
    return np.take_along_axis(probabilities, index, axis=1)[:, 0].astype(np.float64)


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """Pixel counts, int64 ``(K, K)``: entry ``[i, j]`` counts pixels of true class ``i`` predicted as ``j``.

    Args:
        labels: integer class maps of any shape, values 0..K-1 or IGNORE (left out).
        predictions: integer class maps of the same shape, values 0..K-1.

    Raises:
        DataError: shapes differ, or a value is no class.
    """
    if labels.shape != predictions.shape:
        raise DataError(f"labels {labels.shape} and predictions {predictions.shape}; expected one shape")
    counted = labels != IGNORE
    true, predicted = labels[counted].astype(np.int64), predictions[counted].astype(np.int64)
    for name, values in (("labels", true), ("predictions", predicted)):
        if values.size and (values.min() < 0 or values.max() >= num_classes):
            raise DataError(f"{name} hold values {values.min()}..{values.max()}; expected 0..{num_classes - 1}")
    return np.bincount(true * num_classes + predicted, minlength=num_classes**2).reshape(num_classes, num_classes)


def iou(confusion: np.ndarray) -> np.ndarray:
    """Intersection over union a class, float64 ``(..., K)`` in [0, 1] from counts ``(..., K, K)``.

    NaN for a class without a single true pixel: it is absent from the set and belongs in no mean (false alarms for
    it still lower the score of the class that they cover).
    """
    intersection = np.diagonal(confusion, axis1=-2, axis2=-1).astype(np.float64)
    true = confusion.sum(axis=-1)
    union = true + confusion.sum(axis=-2) - intersection
    return np.divide(intersection, union, out=np.full(intersection.shape, np.nan), where=true > 0)


def miou(confusion: np.ndarray) -> float:
    """Mean of ``iou`` over the classes present in the labels, in [0, 1]; NaN if no pixel is labelled."""
    scores = iou(confusion)
    present = ~np.isnan(scores)
    return float(scores[present].mean()) if present.any() else float("nan")
