"""Scores away from the borders of label maps: how much of an error is where exactly a mask's outline lies.

Outlines of oil are drawn by hand, in few strokes, and two people draw them differently; a model that finds the slick is
wrong there by as much as the drawing is. Pixels within a band along the borders are left out (the trimap of Kohli et
al. 2009, doi:10.1007/s11263-008-0202-0, turned inside out), for bands of several widths.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import distance_transform_edt

from dakter.evaluate.scores import Predict, predicted
from dakter.metrics import confusion_matrix
from dakter.schema import IGNORE

# Widths of the band on either side of a border, in pixels of a tile; 0 leaves nothing out.
WIDTHS = (0, 1, 2, 4)


def distance_to_border(labels_HW: np.ndarray) -> np.ndarray:
    """Distance of each pixel to the nearest one of another class, float64 ``(H, W)`` in pixels.

    1 where they touch, infinite in a map of one class. Pixels that are IGNORE are of no class: their own distance is
    infinite, and they are no border.
    """
    found = np.full(labels_HW.shape, np.inf)
    for k in np.unique(labels_HW):
        own, others = labels_HW == k, (labels_HW != k) & (labels_HW != IGNORE)
        if k != IGNORE and others.any():
            found[own] = distance_transform_edt(~others)[own]
    return found


def confusions_off_borders(
    predict: Predict, images: np.ndarray, labels: np.ndarray, *, num_classes: int, chunk: int
) -> np.ndarray:
    """Confusion an image of the pixels further from a border than each of ``WIDTHS``, int64 ``(N, W, K, K)``.

    Arguments and errors as for ``scores.score``.
    """
    rows = []
    for probabilities, true in predicted(predict, images, labels, num_classes, chunk):
        for called, classes in zip(probabilities.argmax(axis=1), true, strict=True):
            distance = distance_to_border(classes)
            kept = [np.where(distance > width, classes, IGNORE) for width in WIDTHS]
            rows.append([confusion_matrix(one, called, num_classes) for one in kept])
    return np.array(rows, dtype=np.int64)


def share_of_errors(sums: np.ndarray, width: int) -> np.ndarray:
    """Share of the wrong pixels that lie within ``width`` of a border ``(...)``, from ``(..., W, K, K)``.

    NaN without a wrong pixel. ``sums`` are those of ``confusions_off_borders``, of an image or added up over several.
    """
    return _within(_wrong(sums), width)


def share_of_pixels(sums: np.ndarray, width: int) -> np.ndarray:
    """Share of all labelled pixels that lie within ``width`` of a border; as ``share_of_errors``."""
    return _within(sums.sum(axis=(-2, -1)), width)


def _wrong(sums: np.ndarray) -> np.ndarray:
    return sums.sum(axis=(-2, -1)) - np.trace(sums, axis1=-2, axis2=-1)


def _within(counts: np.ndarray, width: int) -> np.ndarray:
    """From pixels beyond each of ``WIDTHS``, ``(..., W)``."""
    everything = counts[..., WIDTHS.index(0)].astype(np.float64)
    beyond = counts[..., WIDTHS.index(width)]
    return np.divide(everything - beyond, everything, out=np.full(everything.shape, np.nan), where=everything > 0)
