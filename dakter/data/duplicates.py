"""Near-duplicates among images: pairs whose thumbnails correlate under one of the 8 flips and rotations.

SAR sets are cut from few acquisitions with overlap and augmentation by flips, so a random split puts copies of a
training image into test. Rule and threshold (24x24 pixels, Pearson correlation above 0.9) are stated with the corpus.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from dakter.data.resample import area_mean

THUMBNAIL_PX = 24
_BLOCK = 1024  # rows of a correlation block: 4 MB of float32, whatever the number of images


def thumbnail(image_CHW: np.ndarray) -> np.ndarray:
    """A ``(24, 24)`` float32 area mean over the bands of an image ``(C, H, W)``."""
    return area_mean(image_CHW.astype(np.float32).mean(0), (THUMBNAIL_PX, THUMBNAIL_PX))


def fingerprint(image_CHW: np.ndarray) -> str:
    """sha256 of the pixels: equal images are duplicates even where they are flat and correlate with nothing."""
    head = f"{image_CHW.dtype}{image_CHW.shape}".encode()
    return hashlib.sha256(head + np.ascontiguousarray(image_CHW).tobytes()).hexdigest()


def near_duplicates(thumbnails_NHW: np.ndarray, fingerprints: Sequence[str], correlation: float) -> np.ndarray:
    """Every pair that resembles.

    Args:
        thumbnails_NHW: float32 ``(N, 24, 24)``.
        fingerprints: N strings; equal ones are a pair.
        correlation: a pair must exceed it, in (0, 1].

    Returns:
        int64 ``(P, 2)`` rows ``i < j``, sorted. Costs 4 N^2 products of 576 numbers: seconds for N = 7,000.
    """
    count = len(thumbnails_NHW)
    if count == 0:
        return np.empty((0, 2), np.int64)
    standard = _standardised(thumbnails_NHW)
    found = [_equal_pairs(fingerprints)]
    for turned in _orientations(standard):
        for low in range(0, count, _BLOCK):
            rows = standard[low : low + _BLOCK].reshape(-1, THUMBNAIL_PX**2)
            # The inverse of each of the 8 is among the 8, so pairs j > i hold all that there is.
            i, j = np.nonzero(rows @ turned[low:].reshape(-1, THUMBNAIL_PX**2).T > correlation)
            found.append(np.stack([i + low, j + low], 1)[i < j])
    return np.unique(np.concatenate(found), axis=0).astype(np.int64)


def components(count: int, pairs: np.ndarray) -> np.ndarray:
    """Group number of each of ``count`` images: those joined by a chain of ``pairs`` share one; int32 ``(count,)``."""
    graph = coo_array((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    return connected_components(graph, directed=False)[1].astype(np.int32)


def _standardised(thumbnails_NHW: np.ndarray) -> np.ndarray:
    """Zero mean and unit length, so that a product is the correlation; flat ones become zero."""
    centred = thumbnails_NHW.astype(np.float32) - thumbnails_NHW.mean((1, 2), keepdims=True, dtype=np.float32)
    length = np.sqrt((centred**2).sum((1, 2), keepdims=True))
    return np.where(length > 1e-3, centred / np.maximum(length, 1e-3), 0).astype(np.float32)


def _orientations(images_NHW: np.ndarray) -> list[np.ndarray]:
    turned = [np.rot90(images_NHW, k, (1, 2)) for k in range(4)]
    return [np.ascontiguousarray(view) for image in turned for view in (image, image[:, :, ::-1])]


def _equal_pairs(fingerprints: Sequence[str]) -> np.ndarray:
    """Each image with the next of equal pixels: enough to join them all."""
    last: dict[str, int] = {}
    pairs = []
    for j, key in enumerate(fingerprints):
        if key in last:
            pairs.append((last[key], j))
        last[key] = j
    return np.array(pairs, np.int64).reshape(-1, 2)
