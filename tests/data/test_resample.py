"""Windows and resampling."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from dakter.data.resample import area_mean, shrink_image, shrink_label, window_starts
from dakter.schema import IGNORE


@pytest.mark.parametrize(("length", "window", "overlap"), [(256, 256, 0), (650, 256, 0), (1250, 256, 32), (100, 33, 5)])
def test_windows_cover_all_and_overlap_at_least_as_asked(length: int, window: int, overlap: int) -> None:
    starts = window_starts(length, window, overlap)
    assert starts[0] == 0
    assert starts[-1] == length - window
    assert all(b - a <= window - overlap for a, b in pairwise(starts))
    assert len(starts) == max(1, -(-(length - overlap) // (window - overlap)))


def test_area_mean_is_the_block_mean_and_keeps_the_mean_at_uneven_ratios() -> None:
    values = np.random.default_rng(0).random((2, 12, 18), np.float32)
    np.testing.assert_allclose(area_mean(values, (4, 6)), values.reshape(2, 4, 3, 6, 3).mean((2, 4)), rtol=1e-5)
    np.testing.assert_allclose(area_mean(values, (5, 7)).mean((1, 2)), values.mean((1, 2)), rtol=1e-5)


def test_an_image_keeps_its_type_and_is_rounded() -> None:
    image = np.array([[[0, 1], [1, 1]]], np.uint16)
    np.testing.assert_array_equal(shrink_image(image, 1), np.array([[[1]]], np.uint16))
    assert shrink_image(image, 1).dtype == np.uint16


def test_a_label_takes_the_largest_class_and_of_equals_the_lower() -> None:
    label = np.array([[1, 1, 2, 2], [1, 0, 0, 0], [3, 3, 255, 255], [4, 4, 255, 0]], np.uint8)
    np.testing.assert_array_equal(shrink_label(label, 5, 2), [[1, 0], [3, IGNORE]])
