"""From whole images to tiles: windows that cover an image, area means for values, majorities for classes."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from dakter.schema import IGNORE


def window_starts(length_px: int, window_px: int, overlap_px: int = 0) -> list[int]:
    """Starts of windows that cover ``length_px`` evenly, neighbours sharing at least ``overlap_px``.

    The last window ends with the image: nothing is padded or left out. Needs ``window_px <= length_px`` and
    ``overlap_px < window_px``.
    """
    assert overlap_px < window_px <= length_px, (length_px, window_px, overlap_px)
    count = -(-(length_px - overlap_px) // (window_px - overlap_px))
    return [round(k * (length_px - window_px) / max(count - 1, 1)) for k in range(count)]


def windows(shape_HW: tuple[int, int], window_px: int, overlap_px: int = 0) -> list[tuple[int, int]]:
    """Upper left corners (row, column) of the windows of an image, row by row."""
    rows, columns = (window_starts(length, window_px, overlap_px) for length in shape_HW)
    return [(row, column) for row in rows for column in columns]


@lru_cache(maxsize=64)
def _weights(source_px: int, target_px: int) -> np.ndarray:
    """Float32 ``(target, source)``: the share of each source pixel in the area of a target pixel; rows sum to 1."""
    edges = np.arange(target_px + 1) * (source_px / target_px)
    low, high = edges[:-1, None], edges[1:, None]
    pixel = np.arange(source_px)[None]
    overlap = np.clip(np.minimum(high, pixel + 1) - np.maximum(low, pixel), 0, None)
    return (overlap / overlap.sum(1, keepdims=True)).astype(np.float32)


def area_mean(values: np.ndarray, shape_HW: tuple[int, int]) -> np.ndarray:
    """Area-weighted mean of the last two axes down to ``shape_HW``; float32, leading axes kept."""
    down = _weights(values.shape[-2], shape_HW[0])
    across = _weights(values.shape[-1], shape_HW[1])
    return down @ values.astype(np.float32) @ across.T


def shrink_image(image_CHW: np.ndarray, size_px: int) -> np.ndarray:
    """A stored image to ``(C, size_px, size_px)`` of the same dtype by area mean; a copy at its own size."""
    if image_CHW.shape[1:] == (size_px, size_px):
        return image_CHW.copy()
    return np.rint(area_mean(image_CHW, (size_px, size_px))).astype(image_CHW.dtype)


def shrink_label(label_HW: np.ndarray, num_classes: int, size_px: int) -> np.ndarray:
    """A class map to ``(size_px, size_px)``: the class with the largest area, of equals the lower number.

    IGNORE takes part like a class, so a target pixel is IGNORE where most of its area is.
    """
    if label_HW.shape == (size_px, size_px):
        return label_HW.copy()
    values = np.array([*range(num_classes), IGNORE], np.uint8)
    shares = area_mean((label_HW[None] == values[:, None, None]).astype(np.float32), (size_px, size_px))
    # Float sums of equal areas differ in the last digit; a tie must not hang on it.
    return values[np.argmax(np.round(shares, 4), axis=0)]
