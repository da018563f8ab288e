"""Several models' probabilities as one: a linear opinion pool (Stone 1961), its weights fitted on val.

A joint model's p(y|x) and a segmenter of real labels alone err in different places, so their weighted mean may be the
better soft label; it stays a distribution over classes. Where val has steered a member before (its weights, its
settings), that member looks better there than it is, and weighs too much.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dakter.errors import DataError
from dakter.metrics import FLOOR, label_probability
from dakter.schema import IGNORE

# Rounds of expectation-maximisation, and the rise in mean log-likelihood below which there are no more of them.
_MAX_ROUNDS, _LEAST_RISE = 1000, 1e-9


def pooled(members: Sequence[np.ndarray], weights: Sequence[float] | np.ndarray) -> np.ndarray:
    """The weighted mean of probabilities.

    Args:
        members: arrays of one shape ``(N, K, H, W)``, values in [0, 1] that sum to 1 over K.
        weights: one a member, at least 0, summing to 1; see ``fit_weights``.

    Returns:
        Float32 ``(N, K, H, W)`` that sums to 1 over K.

    Raises:
        DataError: shapes differ, or weights are no distribution over the members.
    """
    _check_shapes(members)
    if len(weights) != len(members) or not (min(weights) >= 0 and abs(sum(weights) - 1) <= 1e-6):
        raise DataError(
            f"weights {[float(w) for w in weights]} for {len(members)} members; expected one each, at least 0, "
            "summing to 1"
        )
    found = sum(np.float32(weight) * member.astype(np.float32) for weight, member in zip(weights, members, strict=True))
    assert isinstance(found, np.ndarray)
    return found


def fit_weights(members: Sequence[np.ndarray], labels: np.ndarray) -> np.ndarray:
    """Weights of the least NLL of the pool; for val, never for test.

    NLL is convex in the weights, so that expectation-maximisation of a mixture's proportions (Dempster et al. 1977)
    finds the least wherever it begins.

    Args:
        members: as of ``pooled``.
        labels: ``(N, H, W)`` class indices; IGNORE is left out.

    Returns:
        Float64 ``(M,)``, at least 0, summing to 1.

    Raises:
        DataError: shapes differ, or there is no labelled pixel.
    """
    _check_shapes(members)
    known = labels != IGNORE
    if members[0].shape[:1] + members[0].shape[2:] != labels.shape or not known.any():
        raise DataError(
            f"labels {labels.shape} with {int(known.sum())} labelled pixels for members {members[0].shape}; expected "
            "one label for each pixel and some that are known: check the labels of the val split"
        )
    of_label = np.stack([np.maximum(label_probability(member, labels)[known], FLOOR) for member in members])
    weights, last = np.full(len(members), 1 / len(members)), -np.inf
    for _ in range(_MAX_ROUNDS):
        mixed = weights @ of_label
        likelihood = float(np.log(mixed).mean())
        if likelihood - last < _LEAST_RISE:
            break
        weights, last = weights * (of_label / mixed).mean(axis=1), likelihood
    return weights / weights.sum()


def _check_shapes(members: Sequence[np.ndarray]) -> None:
    shapes = [member.shape for member in members]
    if not shapes or len(set(shapes)) > 1:
        raise DataError(f"members of a pool have shapes {shapes}; expected at least one, all of one shape (N, K, H, W)")
