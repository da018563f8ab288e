"""Errors near the borders of label maps and away from them."""

from __future__ import annotations

import numpy as np

from dakter.evaluate.borders import (
    WIDTHS,
    confusions_off_borders,
    distance_to_border,
    share_of_errors,
    share_of_pixels,
)
from dakter.evaluate.scores import confusions
from dakter.schema import IGNORE


def _labels() -> np.ndarray:
    """A square of class 1 with its corner at (4, 4), a map of one class, and one without a label in a corner."""
    labels = np.zeros((3, 16, 16), np.uint8)
    labels[0, 4:12, 4:12] = 1
    labels[2, 4:12, 4:12] = 1
    labels[2, :8, :8] = IGNORE
    return labels


def test_distances_are_to_the_nearest_pixel_of_another_class() -> None:
    found = distance_to_border(_labels()[0])
    assert found[8, 3] == found[8, 4] == 1
    assert found[8, 0] == 4
    assert found[8, 7] == 4
    assert found[0, 0] == np.hypot(4, 4)
    assert np.isinf(distance_to_border(_labels()[1])).all()


def test_what_is_not_labelled_is_no_border() -> None:
    found = distance_to_border(_labels()[2])
    assert np.isinf(found[:8, :8]).all()
    assert found[8, 4] == 1  # the sea is to its left
    assert found[8, 6] == 3  # and above it there is nothing known
    classes = np.array([[0, IGNORE, 1, 2]], np.uint8)
    assert distance_to_border(classes).tolist() == [[2, np.inf, 1, 1]]


def test_errors_of_a_wrong_outline_lie_at_borders_and_those_of_a_missed_slick_do_not() -> None:
    labels = _labels()
    grown = labels.copy()
    grown[0, 3:13, 3:13] = 1  # a pixel too large all around
    grown[2] = grown[0]
    called = np.stack([1 - grown, grown], 1).astype(np.float32)
    found = confusions_off_borders(lambda i: called[i], np.arange(3), labels, num_classes=2, chunk=2)
    assert found.shape == (3, len(WIDTHS), 2, 2)
    plain = confusions(lambda i: called[i], np.arange(3), labels, num_classes=2, chunk=2)
    np.testing.assert_array_equal(found[:, WIDTHS.index(0)], plain)
    assert share_of_errors(found[0], 1) == 1 - 4 / 36  # the four corners are a diagonal away
    assert share_of_errors(found[0], 2) == 1
    assert found[0, WIDTHS.index(2), 0, 1] == 0
    assert np.isnan(share_of_errors(found[1], 2))  # no error
    assert share_of_pixels(found[1], 4) == 0
    assert share_of_pixels(found[0], 1) == (28 + 32) / 256
    missed = np.stack([np.ones_like(labels), np.zeros_like(labels)], 1).astype(np.float32)
    found = confusions_off_borders(lambda i: missed[i], np.arange(3), labels, num_classes=2, chunk=3)
    assert share_of_errors(found[0], 2) == (28 + 20) / 64
    total = found.sum(axis=0)
    assert share_of_errors(total, 2) == (total[0, 1, 0] - total[2, 1, 0]) / total[0, 1, 0]
