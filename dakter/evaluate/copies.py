"""Whether generated images are copies: the nearest training image, over the 8 flips and rotations.

Nearness is the correlation of small pictures, blind to brightness and contrast. How near real images come to the
training set tells what is ordinary: held-out real images against training images, beside generated ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from dakter.errors import DataError

THUMBNAIL_PX = 16


@dataclass(frozen=True)
class Nearest:
    """For each query image: index of the nearest reference image, their correlation, and the flip or rotation.

    Attributes:
        index: int64 ``(M,)``.
        correlation: float32 ``(M,)`` in [-1, 1]; 1 is a copy up to brightness and contrast, 0 also an empty image.
        transform: int64 ``(M,)``: quarter turns counter-clockwise of the query, plus 4 if it is mirrored first.
    """

    index: np.ndarray
    correlation: np.ndarray
    transform: np.ndarray


def nearest(queries: np.ndarray, references: np.ndarray, chunk: int = 256) -> Nearest:
    """Find the nearest of ``references`` for each of ``queries``.

    Args:
        queries: stored or float images ``(M, C, H, W)``.
        references: ``(N, C, H', W')``; sizes may differ, both are averaged down to ``THUMBNAIL_PX`` pixels square.
        chunk: queries at a time; bounds memory.

    Raises:
        DataError: no image on either side, or other bands.
    """
    if not len(queries) or not len(references) or queries.shape[1] != references.shape[1]:
        raise DataError(
            f"copies: queries {queries.shape} and references {references.shape}; expected (M, C, H, W) and "
            "(N, C, H', W') with at least one image each and the same bands"
        )
    known = _normalised(thumbnails(references))
    parts = []
    for start in range(0, len(queries), chunk):
        small = thumbnails(queries[start : start + chunk])
        correlation = np.stack([_normalised(turned) @ known.T for turned in dihedral(small)], axis=1)  # (M, 8, N)
        best = correlation.reshape(len(small), -1).argmax(axis=1)
        transform, index = np.divmod(best, len(known))
        parts.append((index, correlation.reshape(len(small), -1).max(axis=1), transform))
    index, value, transform = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Nearest(index, value, transform)


def thumbnails(images: np.ndarray) -> np.ndarray:
    """Images averaged over areas to float32 ``(N, C, THUMBNAIL_PX, THUMBNAIL_PX)``."""
    values = torch.from_numpy(images.astype(np.float32))
    return torch.nn.functional.adaptive_avg_pool2d(values, THUMBNAIL_PX).numpy()


def dihedral(images: np.ndarray) -> Iterator[np.ndarray]:
    """The 8 flips and rotations of square images ``(..., S, S)``, in the order of ``Nearest.transform``."""
    for mirrored in (images, images[..., ::-1]):
        for turns in range(4):
            yield np.rot90(mirrored, turns, axes=(-2, -1))


def _normalised(small: np.ndarray) -> np.ndarray:
    """Rows of zero mean and unit length, ``(N, C * S * S)``; zero for an image without contrast."""
    flat = small.reshape(len(small), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    return np.divide(flat, length, out=np.zeros_like(flat), where=length > 1e-4)
