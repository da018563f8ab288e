"""Proper scores against true class fractions, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dakter.errors import DataError
from dakter.evaluate.fractions import against_fractions, fraction_sums, means
from dakter.metrics import FLOOR
from dakter.schema import IGNORE

# One image of three pixels, of two classes; the last pixel is not labelled.
FRACTIONS = np.array([[[[0.75, 1.0, 0.5]], [[0.25, 0.0, 0.5]]]], np.float32)
LABELS = np.array([[[0, 0, IGNORE]]], np.uint8)


def test_scores_by_hand_and_unlabelled_pixels_left_out() -> None:
    p = np.array([[[[0.5, 0.8, 0.0]], [[0.5, 0.2, 1.0]]]], np.float32)
    entropy, brier, pixels = fraction_sums(p, FRACTIONS, LABELS)[0]
    assert pixels == 2
    assert entropy == pytest.approx(math.log(2) - math.log(0.8))
    assert brier == pytest.approx(2 * 0.25**2 + 2 * 0.2**2)
    assert means(np.array([entropy, brier, pixels])) == {"cross_entropy": entropy / 2, "brier": brier / 2}
    assert means(np.zeros(3)) == {"cross_entropy": None, "brier": None}


def test_nothing_scores_better_than_the_fractions_themselves_and_hard_masks_pay() -> None:
    least = fraction_sums(FRACTIONS, FRACTIONS, LABELS)[0]
    assert least[0] == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25), rel=1e-5)
    assert least[1] == 0.0
    hard = fraction_sums(np.stack([LABELS == 0, LABELS == 1], 1).astype(np.float32), FRACTIONS, LABELS)[0]
    assert hard[0] == pytest.approx(-0.25 * math.log(FLOOR))
    assert hard[1] == pytest.approx(2 * 0.25**2)


@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_images_meet_their_own_fractions_whatever_the_chunk(chunk: int) -> None:
    draw = np.random.default_rng(0)
    p, f = (draw.dirichlet([1, 1, 1], (5, 4, 4)).transpose(0, 3, 1, 2).astype(np.float32) for _ in range(2))
    labels = f.argmax(axis=1).astype(np.uint8)
    found = against_fractions(lambda at: p[at], np.arange(5), labels, f, chunk=chunk)
    expected = means(fraction_sums(p, f, labels).sum(axis=0))
    assert found == {key: pytest.approx(value) for key, value in expected.items()}


def test_shapes_that_do_not_fit_are_told() -> None:
    with pytest.raises(DataError, match="expected twice"):
        fraction_sums(FRACTIONS[:, :1], FRACTIONS, LABELS)
