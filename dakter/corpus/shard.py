"""The unit of work, pure: a sampler and a range of sample indices to the arrays of one shard.

Sample ``i`` is always computed within its own micro-batch ``[i // m * m, i // m * m + m)``, whole and in order, so
its bytes depend neither on the shard size nor on workers, retries or resumes. Shards hold whole micro-batches.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
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
        """int64 ``(n,)`` to stored images uint8 ``(n, C, H, W)`` and soft labels uint8 ``(n, K, H, W)``.

        The arrays are the caller's: they are read while the next call goes on.
        """


def compute(
    sampler: PairSampler,
    first: int,
    count: int,
    poll: Callable[[], None] = lambda: None,
    *,
    out: Arrays | None = None,
) -> Arrays:
    """Samples ``first`` to ``first + count - 1``, uint8: image ``(count, C, H, W)``, soft_label ``(count, K, H, W)``.

    Args:
        first, count: multiples of ``sampler.micro_batch``.
        poll: called before each micro-batch; may raise to give the shard up.
        out: arrays of an earlier call with this ``count``, to be filled again: fresh memory for each shard costs up to
            0.3 ms a sample of 256x256 in the kernel.

    Raises:
        DataError: the sampler returned another shape or type, or soft labels that do not sum to 255.
    """
    size = sampler.micro_batch
    assert first % size == 0, (first, size)
    assert count % size == 0, (count, size)
    shapes = sampler.content.shapes(count)
    arrays = {name: np.empty(shape, np.uint8) for name, shape in shapes.items()} if out is None else out
    assert {name: array.shape for name, array in arrays.items()} == shapes, shapes

    def keep(start: int, pairs: tuple[np.ndarray, np.ndarray]) -> None:
        for (name, whole), part in zip(arrays.items(), pairs, strict=True):
            _check(name, part, (size, *whole.shape[1:]), first + start)
            whole[start : start + size] = part

    # Checking and copying, 5 % of the time of a sampler at the writer's limit, goes on beside the next micro-batch.
    with ThreadPoolExecutor(1, thread_name_prefix="dakter-check") as beside:
        keeping: Future[None] | None = None
        for start in range(0, count, size):
            poll()
            pairs = sampler(np.arange(first + start, first + start + size, dtype=np.int64))
            if keeping:
                keeping.result()
            keeping = beside.submit(keep, start, pairs)
        if keeping:
            keeping.result()
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
    classes, sample_bytes = soft_NKHW.shape[1], int(np.prod(soft_NKHW.shape[1:]))
    sum_K, counts_V = np.zeros(classes, np.int64), np.zeros(256, np.int64)
    step = max(1, 2**19 // sample_bytes)  # parts that stay in the processor's cache
    for start in range(0, len(soft_NKHW), step):
        part = np.ascontiguousarray(soft_NKHW[start : start + step])
        sum_K += part.reshape(len(part), classes, -1).sum(axis=(0, 2), dtype=np.int64)
        counts_V += _histogram(part.reshape(-1))
    p_V = np.arange(256) / 255.0
    nats_V = -p_V * np.log(np.maximum(p_V, 1e-300))
    pixels = soft_NKHW.size // classes
    return (sum_K / 255.0 / pixels).tolist(), float(counts_V @ nats_V / pixels)


def _histogram(values: np.ndarray) -> np.ndarray:
    """How often each value of uint8 ``(n,)`` occurs: two at a time, in half the time of counting each."""
    even = len(values) // 2 * 2
    pairs = np.bincount(values[:even].view(np.uint16), minlength=65536).reshape(256, 256)
    return pairs.sum(axis=0) + pairs.sum(axis=1) + np.bincount(values[even:], minlength=256)
