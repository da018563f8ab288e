"""The order in which training meets the samples of a corpus: pure, from (seed, epoch, rank, world)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dakter import rng

# Rows of one shard that are taken together: (shard, ascending row numbers in it).
Piece = tuple[int, np.ndarray]


@dataclass(frozen=True)
class Window:
    """Samples that are in memory together.

    Attributes:
        pieces: the shards to read and which rows of each.
        places: for each of these rows, in the order of ``pieces``, its place in the shuffled window; below 0: before
            the place at which the reader begins.
    """

    pieces: Sequence[Piece]
    places: np.ndarray


@dataclass(frozen=True)
class Order:
    """An endless walk of one rank through shuffled epochs.

    Each epoch the shards are permuted and their samples laid in one line, which is cut into ``world`` equal lengths (at
    most ``world - 1`` samples at its end sit the epoch out). A rank takes the shards of its length into memory, as many
    at a time as fit a window, and permutes their samples together. So every epoch of every rank has equally many
    samples, with an accept-list too, and only the shards at a cut are read by two ranks.

    Attributes:
        rows: the rows to visit of each shard; none is empty.
        window_samples: most samples of a window, at least those of one shard.
    """

    rows: Sequence[Piece]
    window_samples: int
    seed: int
    rank: int
    world: int

    @property
    def epoch_samples(self) -> int:
        """Samples of one epoch of this rank."""
        return sum(len(rows) for _, rows in self.rows) // self.world

    def windows(self, start: int) -> Iterator[Window]:
        """Windows without end, from the ``start``-th sample of this rank's walk on."""
        epoch, skip = divmod(start, self.epoch_samples)
        while True:
            for number, pieces in enumerate(self._grouped(epoch)):
                count = sum(len(rows) for _, rows in pieces)
                if skip < count:
                    stream = f"corpus/window/{self.rank}/{number}"
                    yield Window(pieces, np.argsort(rng.permutation(count, self.seed, stream, epoch)) - skip)
                skip = max(0, skip - count)
            epoch += 1

    def _grouped(self, epoch: int) -> Iterator[list[Piece]]:
        group: list[Piece] = []
        held = 0
        for shard, rows in self._line(epoch):
            if group and held + len(rows) > self.window_samples:
                yield group
                group, held = [], 0
            group.append((shard, rows))
            held += len(rows)
        yield group

    def _line(self, epoch: int) -> Iterator[Piece]:
        """This rank's part of the epoch's line."""
        permuted = rng.permutation(len(self.rows), self.seed, "corpus/shards", epoch)
        ends = np.cumsum([len(self.rows[i][1]) for i in permuted])
        first, last = self.rank * self.epoch_samples, (self.rank + 1) * self.epoch_samples
        for at in range(int(np.searchsorted(ends, first, side="right")), len(permuted)):
            shard, rows = self.rows[permuted[at]]
            begin = int(ends[at]) - len(rows)
            if begin >= last:
                return
            yield shard, rows[max(0, first - begin) : last - begin]
