"""Randomness as a pure function of (seed, stream name, step or epoch, sample index).

Nothing here depends on worker count, order, retries or the clock: whoever draws number ``index`` of step ``step``
of a named stream gets the same numbers, on any machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import torch


def derive_seed(seed: int, stream: str, step: int = 0, index: int = 0) -> int:
    """A 63-bit seed for one named draw.

    Args:
        seed: the user's seed, any Python int.
        stream: what the numbers are for, e.g. ``"train/noise"``; different names are independent.
        step: step or epoch number.
        index: sample index.
    """
    key = f"{seed}\x1f{stream}\x1f{step}\x1f{index}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 1


def numpy_rng(seed: int, stream: str, step: int = 0, index: int = 0) -> np.random.Generator:
    """A numpy generator (PCG64) for one named draw."""
    return np.random.Generator(np.random.PCG64(derive_seed(seed, stream, step, index)))


def torch_generator(seed: int, stream: str, step: int = 0, index: int = 0) -> torch.Generator:
    """A CPU torch generator for one named draw; move the drawn tensor, not the generator, to a device."""
    return torch.Generator().manual_seed(derive_seed(seed, stream, step, index))


def normal(shape: Sequence[int], seed: int, stream: str, step: int, indices: Iterable[int]) -> torch.Tensor:
    """Standard normal noise, one generator a sample.

    Args:
        shape: shape of one sample, e.g. ``(C, H, W)``.
        indices: sample indices; row ``i`` depends on ``indices[i]`` alone, never on its neighbours.

    Returns:
        float32 tensor ``(len(indices), *shape)`` on the CPU.
    """
    rows = [torch.randn(tuple(shape), generator=torch_generator(seed, stream, step, int(i))) for i in indices]
    return torch.stack(rows) if rows else torch.empty((0, *shape))


def permutation(count: int, seed: int, stream: str, epoch: int) -> np.ndarray:
    """A permutation of ``range(count)`` for one epoch, int64 ``(count,)``."""
    return numpy_rng(seed, stream, epoch).permutation(count)
