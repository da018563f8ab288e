"""Look-alikes taken for oil when as much oil is found as by a reference: scores whose thresholds are matched.

A student that calls less oil mistakes fewer look-alikes for it, so shares of look-alikes taken for oil compare only
where the students find the same share of the oil. What is kept of an image is how the predicted log-odds of oil are
spread over its oil pixels and over its look-alike pixels; the threshold that reaches a wanted recall, and the share of
look-alike pixels beyond it, follow from sums of that over images, in the whole set as in a bootstrap draw.
"""

from __future__ import annotations

import numpy as np

from dakter.evaluate.scores import Predict, predicted

# Equal bins of the log-odds of oil, log p / (1 - p), from -MOST to MOST, beyond which float32 hardly goes: networks are
# sure of most pixels, and among those that they are sure of lie the thresholds of a high recall.
NUM_BINS = 256
MOST = 16.0
_TINY = 1e-12


def histograms(
    predict: Predict,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    num_classes: int,
    oil: int,
    look_alike: int,
    chunk: int,
) -> np.ndarray:
    """Pixels an image by predicted log-odds of oil, int64 ``(N, 2, NUM_BINS)``: of true oil, of true look-alikes.

    Args:
        predict, images, labels, num_classes, chunk: as for ``scores.score``.
        oil, look_alike: their class indices.

    Raises:
        DataError: as ``scores.score``.
    """
    rows = []
    for probabilities, true in predicted(predict, images, labels, num_classes, chunk):
        of_oil = probabilities[:, oil].astype(np.float64)
        # The other classes' sum and not 1 - p, which in float32 is 0 long before they are.
        of_others = np.delete(probabilities, oil, axis=1).sum(axis=1, dtype=np.float64)
        odds = np.log(np.maximum(of_oil, _TINY)) - np.log(np.maximum(of_others, _TINY))
        bins = np.clip((odds + MOST) * (NUM_BINS / (2 * MOST)), 0, NUM_BINS - 1).astype(np.int64)
        for of_image, classes in zip(bins, true, strict=True):
            rows.append([np.bincount(of_image[classes == k], minlength=NUM_BINS) for k in (oil, look_alike)])
    return np.array(rows, dtype=np.int64)


def matched_sums(counts: np.ndarray, reference: np.ndarray, oil: int) -> np.ndarray:
    """What ``taken_share`` needs of each image, float64 ``(N, 2 NUM_BINS + 2)``, to be summed over images.

    Args:
        counts: ``histograms`` of a student, ``(N, 2, NUM_BINS)``.
        reference: confusion an image ``(N, K, K)`` of the student whose recall (of its likeliest class) is wanted.
        oil: class index.
    """
    of_oil = reference[:, oil]
    wanted = np.stack([of_oil[:, oil], of_oil.sum(axis=1)], axis=1)
    return np.concatenate([counts.reshape(len(counts), -1), wanted], axis=1).astype(np.float64)


def threshold(sums: np.ndarray) -> np.ndarray:
    """Probability of oil ``(...)`` from which on a pixel is called oil, so that the wanted recall is reached.

    Within a bin pixels count as spread evenly over the log-odds. NaN without a pixel of oil. From
    ``(..., 2 NUM_BINS + 2)``.
    """
    at, part = _cut(sums)
    return probability_at(at + 1 - part)


def probability_at(edge: np.ndarray | float) -> np.ndarray:
    """The probability of oil at an edge of the bins, 0 to NUM_BINS, or between two."""
    return np.asarray(1.0 / (1.0 + np.exp(MOST - np.asarray(edge) * (2 * MOST / NUM_BINS))))


def taken_share(sums: np.ndarray) -> np.ndarray:
    """Share of look-alike pixels ``(...)``, in (0, 1), at or above ``threshold``, spread evenly within a bin.

    Half a pixel is added to those taken and to those not (Haldane 1956, Anscombe 1956), so that the share has a
    logarithm. NaN without a pixel of oil or of look-alikes.
    """
    at, part = _cut(sums)
    look_alikes = sums[..., NUM_BINS : 2 * NUM_BINS]
    total = look_alikes.sum(axis=-1)
    taken = _at(_above(look_alikes), at + 1) + part * _at(look_alikes, at)
    return np.where(total > 0, (taken + 0.5) / (total + 1.0), np.nan)


def log_taken_share(sums: np.ndarray) -> np.ndarray:
    """Logarithm of ``taken_share``: a difference of two is the logarithm of their ratio."""
    return np.log(taken_share(sums))


def recall(sums: np.ndarray) -> np.ndarray:
    """The wanted recall of oil ``(...)``; NaN without a pixel of oil."""
    found, true = sums[..., -2], sums[..., -1]
    return np.divide(found, true, out=np.full(true.shape, np.nan), where=true > 0)


def _cut(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The bin of the threshold, and the part of it, from above, that is called oil (NaN where undefined)."""
    oil = sums[..., :NUM_BINS]
    above = _above(oil)
    wanted = recall(sums) * above[..., 0]
    # Bin edges with at least so many pixels above them: the highest one is the lower edge of the bin.
    enough = (above >= np.nan_to_num(wanted)[..., None]).sum(axis=-1)
    at = np.minimum(enough - 1, NUM_BINS - 1)
    inside = _at(oil, at)
    part = np.divide(wanted - _at(above, at + 1), inside, out=np.zeros(wanted.shape), where=inside > 0)
    return at, np.where(np.isnan(wanted), np.nan, part)


def _above(counts: np.ndarray) -> np.ndarray:
    """Pixels above each edge of the bins, ``(..., NUM_BINS + 1)``."""
    sums = np.cumsum(counts[..., ::-1], axis=-1)[..., ::-1]
    return np.concatenate([sums, np.zeros((*sums.shape[:-1], 1))], axis=-1)


def _at(values: np.ndarray, index: np.ndarray) -> np.ndarray:
    return np.take_along_axis(values, index[..., None], axis=-1)[..., 0]
