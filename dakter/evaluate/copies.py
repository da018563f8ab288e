"""Whether generated images are copies, of training images or of each other, over the 8 flips and rotations.

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
# Rows and columns compared at a time, and pairs looked at closely at a time: 64 MB of float32 each.
_ROWS, _COLUMNS, _PAIRS = 1024, 16384, 32768


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


def first_alike(small: np.ndarray, correlation: float) -> np.ndarray:
    """The earlier image that each image repeats, int64 ``(N,)``; -1 where it repeats none.

    Taken in their order, an image repeats an earlier one that repeats none itself if the two correlate more than
    ``correlation`` under one of the 8 turns; of several such the first. So one of each crowd of look-alikes stays.

    The answer is exact, but most pairs are told apart by 36 numbers a band instead of 8 times 256: the mean over the
    turns is a projection, so it brings pictures nearer and never farther apart, and unit vectors that correlate more
    than c are nearer than sqrt(2 - 2 c).

    Args:
        small: ``thumbnails`` of the images, ``(N, C, THUMBNAIL_PX, THUMBNAIL_PX)``.
        correlation: in [-1, 1].
    """
    if not len(small):
        return np.empty(0, np.int64)
    unit = _normalised(small).reshape(small.shape)
    folded = _folded(unit)
    square = (folded**2).sum(axis=1)
    repeats = np.full(len(small), -1, np.int64)

    def alike(rows: np.ndarray, columns: np.ndarray) -> Iterator[tuple[int, int]]:
        """Pairs (row, earlier column) that correlate more, rows ascending within some columns."""
        for start in range(0, len(columns), _COLUMNS):
            some = columns[start : start + _COLUMNS]
            apart = square[rows, None] + square[some] - 2 * folded[rows] @ folded[some].T
            i, j = np.nonzero((apart <= 2 - 2 * correlation + 1e-5) & (rows[:, None] > some))
            for at in range(0, len(i), _PAIRS):
                later, earlier = rows[i[at : at + _PAIRS]], some[j[at : at + _PAIRS]]
                turns = [np.einsum("pcyx,pcyx->p", unit[later], turned) for turned in dihedral(unit[earlier])]
                near = np.max(turns, axis=0) > correlation
                yield from zip(later[near].tolist(), earlier[near].tolist(), strict=True)

    kept = np.empty(0, np.int64)
    shown = np.flatnonzero(np.abs(unit).max(axis=(1, 2, 3)) > 0)  # empty images resemble nothing
    for start in range(0, len(shown), _ROWS):
        rows = shown[start : start + _ROWS]
        for known in (kept, rows):  # those before first: what repeats one of them keeps nothing else out
            for later, earlier in alike(rows[repeats[rows] < 0], known):
                if repeats[later] < 0 and repeats[earlier] < 0:
                    repeats[later] = earlier
        kept = np.concatenate([kept, rows[repeats[rows] < 0]])
    return repeats


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


def _folded(unit: np.ndarray) -> np.ndarray:
    """The mean of pictures ``(N, C, S, S)``, S even, over their 8 turns: ``(N, C * S/2 * (S/2 + 1) / 2)``, same length.

    Each number stands for the 8 cells, or 4 on a diagonal, that the turns bring into one another.
    """
    total = np.zeros_like(unit)
    for turned in dihedral(unit):
        total += turned
    row, column = np.triu_indices(unit.shape[-1] // 2)
    cells = np.where(row == column, 4, 8).astype(np.float32)
    return (total[:, :, row, column] / 8 * np.sqrt(cells)).reshape(len(unit), -1)
