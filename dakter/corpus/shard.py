"""The unit of work, pure: a sampler and a range of sample indices to the arrays of one shard.

Sample ``i`` is always computed within its own micro-batch ``[i // m * m, i // m * m + m)``, whole and in order, so
its bytes depend neither on the shard size nor on workers, retries or resumes. Shards hold whole micro-batches.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from dakter.corpus.content import Content
from dakter.errors import DataError

# Names of the arrays of a corpus; a shard is one uint8 array of each.
Arrays = dict[str, np.ndarray]


class PairSampler(Protocol):
    """Draws image and soft-label pairs by their index in the corpus.

    Attributes:
        identity: JSON of everything that the bytes depend on: model digest, sampler and soft-label settings, dtype,
            threads.
        content: what one pair is.
        micro_batch: how many samples one call computes.
    """

    identity: dict[str, Any]
    content: Content
    micro_batch: int

    def __call__(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """int64 ``(n,)`` to stored images uint8 ``(n, C, H, W)`` and soft labels uint8 ``(n, K, H, W)``."""


def compute(sampler: PairSampler, first: int, count: int, poll: Callable[[], None] = lambda: None) -> Arrays:
    """Samples ``first`` to ``first + count - 1``, uint8: image ``(count, C, H, W)``, soft_label ``(count, K, H, W)``.

    Args:
        first, count: multiples of ``sampler.micro_batch``.
        poll: called before each micro-batch; may raise to give the shard up.

    Raises:
        DataError: the sampler returned another shape or type, or soft labels that do not sum to 255.
    """
    size = sampler.micro_batch
    assert first % size == 0, (first, size)
    assert count % size == 0, (count, size)
    arrays = {name: np.empty(shape, np.uint8) for name, shape in sampler.content.shapes(count).items()}
    for start in range(0, count, size):
        poll()
        indices = np.arange(first + start, first + start + size, dtype=np.int64)
        for (name, whole), part in zip(arrays.items(), sampler(indices), strict=True):
            _check(name, part, (size, *whole.shape[1:]), int(indices[0]))
            whole[start : start + size] = part
    return arrays


def _check(name: str, part: np.ndarray, shape: tuple[int, ...], first: int) -> None:
    if part.shape != shape or part.dtype != np.uint8:
        raise DataError(f"samples from {first}: {name} is {part.dtype} {part.shape}; expected uint8 {shape}")
    if name == "soft_label" and not _sums_to_255(part):
        raise DataError(
            f"samples from {first}: soft labels do not sum to 255 in every pixel; expected soft_to_stored's"
        )


def _sums_to_255(soft_NKHW: np.ndarray) -> bool:
    total_NHW = soft_NKHW[:, 0].astype(np.uint16)
    for k in range(1, soft_NKHW.shape[1]):  # plane by plane: a third of the time of sum(axis=1)
        total_NHW += soft_NKHW[:, k]
    return bool((total_NHW == 255).all())


def sha256(data: bytes | memoryview | np.ndarray) -> str:
    """Hex digest of bytes, or of an array's bytes in C order."""
    return hashlib.sha256(np.ascontiguousarray(data).data if isinstance(data, np.ndarray) else data).hexdigest()


def summary(soft_NKHW: np.ndarray) -> tuple[list[float], float]:
    """Mean probability per class, and mean entropy in nats per pixel, of stored soft labels uint8 ``(N, K, H, W)``."""
    counts_KV = np.stack([np.bincount(soft_NKHW[:, k].ravel(), minlength=256) for k in range(soft_NKHW.shape[1])])
    pixels = counts_KV[0].sum()
    p_V = np.arange(256) / 255.0
    nats_V = -p_V * np.log(np.maximum(p_V, 1e-300))
    return (counts_KV @ p_V / pixels).tolist(), float(counts_KV.sum(axis=0) @ nats_V / pixels)
