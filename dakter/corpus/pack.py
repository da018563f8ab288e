"""A shard as the store takes it, made while its samples are still being drawn.

Compressing and hashing take time that a fast sampler would have to wait. Here each micro-batch is compressed and hashed
beside the drawing of the next, so that the last one and an index are all that is left to do at the end, and the decoded
samples of a whole shard are never held.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from dakter.corpus import codec
from dakter.corpus.layout import ARRAYS, Layout
from dakter.corpus.shard import Arrays, PairSampler, Tally, draw


@dataclass(frozen=True)
class Packed:
    """One shard, compressed, and what its commit record tells of it.

    Attributes:
        objects: array name -> the bytes of its one object.
        stored_sha256: array name -> hex digest of those bytes.
        decoded_sha256: array name -> hex digest of its samples, uint8 in C order.
        class_shares: mean probability of each class.
        entropy_nats: mean entropy of the soft labels, in nats a pixel.
    """

    objects: dict[str, bytes]
    stored_sha256: dict[str, str]
    decoded_sha256: dict[str, str]
    class_shares: list[float]
    entropy_nats: float


class Packer:
    """Takes the samples of one shard in their order, some at a time.

    Args:
        level: zstd level.
        pool: threads that share the compression; the bytes are the same.
        per_shard: samples of a whole shard, if this one may be shorter.
    """

    def __init__(self, level: int, pool: ThreadPoolExecutor | None = None, per_shard: int = 0):
        self._encoders = {name: codec.Encoder(name, level, pool, per_shard) for name in ARRAYS}
        self._decoded = {name: hashlib.sha256() for name in ARRAYS}
        self._tally = Tally()

    def add(self, part: Arrays) -> None:
        """The next samples: image uint8 ``(n, C, H, W)`` and soft_label uint8 ``(n, K, H, W)``."""
        waiting = [self._encoders[name].begin(part[name]) for name in ARRAYS]
        for name in ARRAYS:  # in this thread while those of the pool compress
            self._decoded[name].update(np.ascontiguousarray(part[name]).data)
        self._tally.add(part["soft_label"])
        for compressed in waiting:
            compressed()

    def finish(self) -> Packed:
        """The shard of all samples so far; raises DataError if there are none."""
        objects = {name: encoder.finish() for name, encoder in self._encoders.items()}
        return Packed(
            objects,
            {name: encoder.sha256 for name, encoder in self._encoders.items()},
            {name: digest.hexdigest() for name, digest in self._decoded.items()},
            self._tally.class_shares,
            self._tally.entropy_nats,
        )


def pack(arrays: Arrays, level: int, per_shard: int = 0) -> Packed:
    """A shard whose samples are all there; the same as if they had come one by one. Arguments as of ``Packer``."""
    packer = Packer(level, per_shard=per_shard)
    packer.add(arrays)
    return packer.finish()


def make(
    layout: Layout,
    sampler: PairSampler,
    shard: int,
    poll: Callable[[], None] = lambda: None,
    *,
    pool: ThreadPoolExecutor | None = None,
) -> Callable[[], Packed]:
    """Draw one shard of a corpus; arguments and errors as of ``shard.compute``.

    Returns:
        When all is drawn, a function that packs what is left of it and returns the shard: the next one can be drawn
        meanwhile. It raises as this one does, and is called once.
    """
    size = layout.samples_per_shard
    packer = Packer(int(layout.identity["compression_level"]), pool, size)
    last = draw(sampler, shard * size, layout.size(shard), lambda _, part: packer.add(part), poll)

    def rest() -> Packed:
        last()
        return packer.finish()

    return rest
