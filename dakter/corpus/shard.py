"""The unit of work, pure: a sampler and a range of sample indices to the arrays of one shard.

Sample ``i`` is always computed within its own micro-batch ``[i // m * m, i // m * m + m)``, whole and in order, so
its bytes depend neither on the shard size nor on workers, retries or resumes. Shards hold whole micro-batches; only the
last of a corpus of given images ends where they end.
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

    One that labels given images has their number as ``num_samples``, and is asked for no other.
    """

    identity: dict[str, Any]
    content: Content
    micro_batch: int

    def __call__(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """int64 ``(n,)`` to stored images uint8 ``(n, C, H, W)`` and soft labels uint8 ``(n, K, H, W)``.

        The arrays are the caller's: they are read while the next call goes on.
        """


def compute(sampler: PairSampler, first: int, count: int, poll: Callable[[], None] = lambda: None) -> Arrays:
    """Samples ``first`` to ``first + count - 1``, uint8: image ``(count, C, H, W)``, soft_label ``(count, K, H, W)``.

    Args:
        first, count: multiples of ``sampler.micro_batch``; ``count`` may end where the corpus does.
        poll: called before each micro-batch; may raise to give the shard up.

    Raises:
        DataError: the sampler returned another shape or type, or soft labels that do not sum to 255.
    """
    arrays = {name: np.empty(shape, np.uint8) for name, shape in sampler.content.shapes(count).items()}

    def keep(start: int, part: Arrays) -> None:
        for name, whole in arrays.items():
            whole[start : start + len(part[name])] = part[name]

    draw(sampler, first, count, keep, poll)()
    return arrays


def draw(
    sampler: PairSampler, first: int, count: int, keep: Callable[[int, Arrays], None], poll: Callable[[], None]
) -> Callable[[], None]:
    """Hand ``keep`` one checked micro-batch after the other, in order, each while the next is being drawn.

    Args:
        keep: called with the place of the first sample, counted from ``first``, and the samples, in one thread.

    Returns:
        When all is drawn, a function that waits until the last micro-batch is kept; it raises as this one does.
    """
    size, last = sampler.micro_batch, first + count
    assert first % size == 0, (first, size)
    assert count % size == 0 or last == getattr(sampler, "num_samples", None), (count, size)

    def checked(start: int, pairs: tuple[np.ndarray, np.ndarray]) -> None:
        shapes = sampler.content.shapes(min(size, count - start))
        part = dict(zip(shapes, pairs, strict=True))
        for name, shape in shapes.items():
            _check(name, part[name], shape, first + start)
        keep(start, part)

    beside = ThreadPoolExecutor(1, thread_name_prefix="dakter-keep")
    keeping: Future[None] | None = None
    try:
        for start in range(0, count, size):
            poll()
            pairs = sampler(np.arange(first + start, min(first + start + size, last), dtype=np.int64))
            if keeping:
                keeping.result()
            keeping = beside.submit(checked, start, pairs)
    finally:
        beside.shutdown(wait=False)
    return keeping.result if keeping else lambda: None


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


class Tally:
    """Class shares and entropy of stored soft labels, uint8 ``(N, K, H, W)``, some at a time."""

    def __init__(self) -> None:
        self._sum_K: np.ndarray | None = None
        self._counts_V = np.zeros(256, np.int64)

    def add(self, soft_NKHW: np.ndarray) -> None:
        """More samples."""
        classes, sample_bytes = soft_NKHW.shape[1], int(np.prod(soft_NKHW.shape[1:]))
        if self._sum_K is None:
            self._sum_K = np.zeros(classes, np.int64)
        step = max(1, 2**19 // sample_bytes)  # parts that stay in the processor's cache
        for start in range(0, len(soft_NKHW), step):
            part = np.ascontiguousarray(soft_NKHW[start : start + step])
            self._sum_K += part.reshape(len(part), classes, -1).sum(axis=(0, 2), dtype=np.int64)
            self._counts_V += _histogram(part.reshape(-1))

    @property
    def _pixels(self) -> int:
        assert self._sum_K is not None, "no samples"
        return int(self._counts_V.sum()) // len(self._sum_K)

    @property
    def class_shares(self) -> list[float]:
        """Mean probability of each class."""
        assert self._sum_K is not None, "no samples"
        shares: list[float] = (self._sum_K / 255.0 / self._pixels).tolist()
        return shares

    @property
    def entropy_nats(self) -> float:
        """Mean entropy in nats a pixel."""
        p_V = np.arange(256) / 255.0
        return float(self._counts_V @ (-p_V * np.log(np.maximum(p_V, 1e-300))) / self._pixels)


def _histogram(values: np.ndarray) -> np.ndarray:
    """How often each value of uint8 ``(n,)`` occurs: two at a time, in half the time of counting each."""
    even = len(values) // 2 * 2
    pairs = np.bincount(values[:even].view(np.uint16), minlength=65536).reshape(256, 256)
    return pairs.sum(axis=0) + pairs.sum(axis=1) + np.bincount(values[even:], minlength=256)
