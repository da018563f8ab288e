"""Linear opinion pools: the weights that val asks for, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from dakter.errors import DataError
from dakter.evaluate.calibration import proper_sums
from dakter.evaluate.pooling import fit_weights, pooled
from dakter.schema import IGNORE

SHAPE = (4, 3, 16, 16)


def members_of(seed: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Three models, each sure of the right class in a part of the image of its own, and labels."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, SHAPE[1], (SHAPE[0], *SHAPE[2:])).astype(np.uint8)
    right = (np.arange(SHAPE[1])[:, None, None] == labels[:, None]).astype(np.float32)
    found = []
    for part in (slice(0, 4), slice(4, 14), slice(14, 15)):
        member = draw.dirichlet(np.ones(SHAPE[1]), (SHAPE[0], *SHAPE[2:])).transpose(0, 3, 1, 2).astype(np.float32)
        member[:, :, part] = 0.1 * member[:, :, part] + 0.9 * right[:, :, part]
        found.append(member)
    return found, labels


def nll(probabilities: np.ndarray, labels: np.ndarray) -> float:
    total = proper_sums(probabilities, labels).sum(axis=0)
    return float(total[0] / total[2])


def test_weights_are_those_of_the_least_nll() -> None:
    members, labels = members_of(0)
    weights = fit_weights(members, labels)
    assert weights.sum() == pytest.approx(1)
    assert weights[1] > weights[0] > weights[2], "who is right in more pixels weighs more"
    least = nll(pooled(members, weights), labels)
    draw = np.random.default_rng(1)
    for other in [*np.eye(3), np.full(3, 1 / 3), *draw.dirichlet(np.ones(3), 50), *draw.dirichlet(300 * weights, 50)]:
        assert least <= nll(pooled(members, other), labels) + 1e-6, other


def test_a_member_that_adds_nothing_weighs_nothing() -> None:
    members, labels = members_of(0)
    uniform = np.full(SHAPE, 1 / SHAPE[1], dtype=np.float32)
    sharp = 0.02 * uniform + 0.98 * (np.arange(SHAPE[1])[:, None, None] == labels[:, None])
    assert fit_weights([sharp, uniform], labels) == pytest.approx([1, 0], abs=1e-3)
    assert fit_weights([members[0]], labels) == pytest.approx([1])


def test_pixels_without_a_label_do_not_count() -> None:
    members, labels = members_of(0)
    hidden = labels.copy()
    hidden[:, 4:14] = IGNORE
    cut = [np.delete(member, np.s_[4:14], axis=2) for member in members]
    assert fit_weights(members, hidden) == pytest.approx(fit_weights(cut, np.delete(labels, np.s_[4:14], axis=1)))


def test_a_pool_is_a_distribution_and_the_weighted_mean() -> None:
    members, _ = members_of(0)
    found = pooled(members, [0.5, 0.25, 0.25])
    assert found.dtype == np.float32
    assert found.sum(axis=1) == pytest.approx(np.ones((SHAPE[0], *SHAPE[2:])), abs=1e-5)
    assert found == pytest.approx(members[0] / 2 + members[1] / 4 + members[2] / 4, abs=1e-6)


@pytest.mark.parametrize("weights", [[0.5, 0.5], [0.5, 0.6, 0.1], [1.5, -0.5, 0.0], [float("nan"), 0.5, 0.5]])
def test_weights_that_are_no_distribution_are_refused(weights: list[float]) -> None:
    with pytest.raises(DataError, match="expected one each, at least 0, summing to 1"):
        pooled(members_of(0)[0], weights)


def test_members_of_other_shapes_and_val_without_labels_are_refused() -> None:
    members, labels = members_of(0)
    with pytest.raises(DataError, match="all of one shape"):
        fit_weights([members[0], members[1][:, :2]], labels)
    with pytest.raises(DataError, match="all of one shape"):
        pooled([], [])
    with pytest.raises(DataError, match="check the labels of the val split"):
        fit_weights(members, np.full_like(labels, IGNORE))
    with pytest.raises(DataError, match="one label for each pixel"):
        fit_weights(members, labels[:2])
