"""What fills a batch beside real pairs: endless streams of generated pairs, or of images that a model labelled."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from dakter import rng
from dakter.errors import ConfigError

# (step, count) -> images stored (count, C, H, W), soft labels stored uint8 (count, K, H, W); a pure function.
SyntheticStream = Callable[[int, int], tuple[np.ndarray, np.ndarray]]


def array_stream(images: np.ndarray, soft: np.ndarray, seed: int, name: str = "students/synthetic") -> SyntheticStream:
    """A stream over pairs in memory: every one once an epoch, in an order drawn from (seed, ``name``, epoch)."""
    order = Order(len(images), seed, name)

    def draw(step: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        chosen = order(step * count, count)
        return images[chosen], soft[chosen]

    return draw


def mixed_stream(parts: Sequence[tuple[SyntheticStream, float]]) -> SyntheticStream:
    """A stream whose every batch holds rows of several streams, in proportion to their weights.

    Args:
        parts: streams with weights above 0, e.g. generated pairs and real images that a model labelled. Of ``count``
            rows each gets its share, rounded so that they add up; the rows of one stream stand together.

    Raises:
        ConfigError: no stream, or a weight that is not above 0.
    """
    weights = np.array([weight for _, weight in parts], dtype=np.float64)
    if not len(parts) or not (weights > 0).all():
        raise ConfigError(f"weights of a mixed stream are {weights.tolist()}; expected at least one, each above 0")

    def draw(step: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        counts = shared_rows(weights, count)
        drawn = [stream(step, rows) for (stream, _), rows in zip(parts, counts, strict=True) if rows]
        images, soft = zip(*drawn, strict=True)
        return np.concatenate(images), np.concatenate(soft)

    return draw


def shared_rows(weights: Sequence[float] | np.ndarray, count: int) -> list[int]:
    """``count`` rows shared out in proportion to weights above 0, rounded so that they add up."""
    ends = np.cumsum(weights) / np.sum(weights) * count
    rows: list[int] = np.diff(np.rint(ends).astype(int), prepend=0).tolist()
    return rows


class Order:
    """Sample indices of an endless walk through shuffled epochs; a pure function of the position."""

    def __init__(self, count: int, seed: int, stream: str):
        self._count, self._seed, self._stream = count, seed, stream
        self._epochs: dict[int, np.ndarray] = {}

    def _epoch(self, epoch: int) -> np.ndarray:
        if epoch not in self._epochs:
            if len(self._epochs) > 4:
                self._epochs.clear()
            self._epochs[epoch] = rng.permutation(self._count, self._seed, self._stream, epoch)
        return self._epochs[epoch]

    def __call__(self, start: int, count: int) -> np.ndarray:
        positions = [divmod(number, self._count) for number in range(start, start + count)]
        return np.array([self._epoch(epoch)[at] for epoch, at in positions], dtype=np.int64)


def spread(count: int, kept: int, step: int) -> np.ndarray:
    """``kept`` of ``count`` rows in their order, as evenly spread as can be, others from step to step: int64 (kept,).

    So that of a ``mixed_stream``, whose sources stand one after the other, each keeps its share.
    """
    return np.sort((np.arange(kept) * count // kept + step) % count)
