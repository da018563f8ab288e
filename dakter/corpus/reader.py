"""Reading a corpus for training: whole committed shards, checked, decoded by threads, shuffled across shards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from dakter import rng
from dakter.config import digest_json
from dakter.corpus import codec
from dakter.corpus.commit import read_commit
from dakter.corpus.layout import Layout
from dakter.corpus.manifest import ranges, read_manifest, records
from dakter.corpus.shard import sha256
from dakter.errors import DataError, IntegrityError

# One window of samples: images uint8 (n, C, H, W) and soft labels uint8 (n, K, H, W).
Pairs = tuple[np.ndarray, np.ndarray]


class CorpusReader:
    """The committed shards of a corpus at a local path or ``s3://`` URL, as they stood when it was opened.

    A partial corpus is valid. Every shard is checked against its commit record before a sample of it is used.

    Args:
        url: the corpus.
        threads: decoding threads.

    Raises:
        DataError: no corpus stands there.
        IntegrityError: its arrays are not laid out as this reader expects.
    """

    def __init__(self, url: str, *, threads: int = 4):
        self._layout = Layout.open(url)
        self._layout.check_documents()
        self.url = url
        self.identity = self._layout.identity
        self.content = self._layout.content
        self.manifest = read_manifest(self._layout)
        self.samples_per_shard = self._layout.samples_per_shard
        self.shards: tuple[int, ...] = tuple(self._layout.committed())
        self.num_samples = len(self.shards) * self.samples_per_shard
        self._records: dict[int, dict[str, Any]] = {}
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="dakter-decode")

    @property
    def digest(self) -> str:
        """Digest over the decoded hashes of exactly the committed shards; the manifest's, if it covers the same."""
        if self.manifest and tuple(row["shard"] for row in self.manifest["ranges"]) == self.shards:
            return str(self.manifest["digest"])
        return digest_json(ranges(records(self._layout, self.shards)))

    def read_shard(self, shard: int) -> Pairs:
        """All pairs of one shard: images uint8 ``(n, C, H, W)``, soft labels uint8 ``(n, K, H, W)``.

        Raises:
            IntegrityError: the shard is not committed, or its bytes are not those of its record.
        """
        out = self._empty(1)
        self._read_into(shard, out)
        return out

    def sample(self, indices: Sequence[int]) -> Pairs:
        """Pairs by their index in the corpus, in the order asked for; reads the whole shards that hold them."""
        wanted = np.asarray(indices, dtype=np.int64)
        where, row = np.divmod(wanted, self.samples_per_shard)
        images, soft = (np.empty((len(wanted), *part.shape[1:]), np.uint8) for part in self._empty(0))
        for shard in np.unique(where):
            here = where == shard
            pairs = self.read_shard(int(shard))
            images[here], soft[here] = pairs[0][row[here]], pairs[1][row[here]]
        return images, soft

    def batches(
        self,
        batch_size: int,
        seed: int,
        start_batch: int = 0,
        shuffle_shards: int = 4,
        *,
        rank: int = 0,
        world: int = 1,
    ) -> Iterator[Pairs]:
        """Batches without end, each epoch in another order; a pure function of the arguments and the corpus.

        The shards are permuted each epoch and dealt out to the ranks, equally many to each (what is left over sits
        out that epoch); those of a rank are taken ``shuffle_shards`` at a time into memory, their samples permuted
        together, and the next ones are read meanwhile: memory is two such windows.

        Args:
            start_batch: where to begin: the batches are those that ``start_batch`` calls of ``next`` would skip to.
            rank, world: this reader's place among those that share the corpus.

        Yields:
            images uint8 ``(batch_size, C, H, W)``, soft labels uint8 ``(batch_size, K, H, W)``.

        Raises:
            DataError: fewer committed shards than ranks.
        """
        if batch_size < 1 or start_batch < 0 or shuffle_shards < 1 or not 0 <= rank < world:
            raise DataError(
                f"batches(batch_size={batch_size}, start_batch={start_batch}, shuffle_shards={shuffle_shards}, "
                f"rank={rank}, world={world}): expected batch_size, shuffle_shards >= 1, start_batch >= 0, rank < world"
            )
        if len(self.shards) < world:
            raise DataError(
                f"{self.url}: {len(self.shards)} committed shards for {world} readers; generate more samples, "
                "make shards smaller, or use fewer readers"
            )
        return self._batches(batch_size, seed, start_batch, shuffle_shards, rank, world)

    def _batches(
        self, batch_size: int, seed: int, start_batch: int, shuffle_shards: int, rank: int, world: int
    ) -> Iterator[Pairs]:
        per_rank = len(self.shards) // world
        windows_per_epoch = -(-per_rank // shuffle_shards)
        epoch, offset = divmod(start_batch * batch_size, per_rank * self.samples_per_shard)
        window, offset = divmod(offset, shuffle_shards * self.samples_per_shard)
        number = epoch * windows_per_epoch + window

        def load(number: int) -> Pairs:
            epoch, window = divmod(number, windows_per_epoch)
            order = rng.permutation(len(self.shards), seed, "corpus/shards", epoch)[rank * per_rank :][:per_rank]
            taken = [self.shards[i] for i in order[window * shuffle_shards :][:shuffle_shards]]
            return self._window(taken)

        with ThreadPoolExecutor(1, thread_name_prefix="dakter-ahead") as ahead:
            following: Future[Pairs] = ahead.submit(load, number)
            parts: list[Pairs] = []
            have = 0
            while True:
                images, soft = following.result()
                following = ahead.submit(load, number + 1)
                order = rng.permutation(len(images), seed, f"corpus/window/{rank}", number)
                while offset < len(order):
                    rows = order[offset : offset + batch_size - have]
                    offset += len(rows)
                    have += len(rows)
                    parts.append((images[rows], soft[rows]))
                    if have == batch_size:
                        yield _joined(parts)
                        parts, have = [], 0
                number, offset = number + 1, 0

    def _window(self, shards: Sequence[int]) -> Pairs:
        out, size = self._empty(len(shards)), self.samples_per_shard
        for position, shard in enumerate(shards):
            rows = slice(position * size, (position + 1) * size)
            self._read_into(shard, (out[0][rows], out[1][rows]))
        return out

    def _empty(self, num_shards: int) -> Pairs:
        shapes = self.content.shapes(num_shards * self.samples_per_shard)
        return np.empty(shapes["image"], np.uint8), np.empty(shapes["soft_label"], np.uint8)

    def _read_into(self, shard: int, out: Pairs) -> None:
        record = self._record(shard)
        for (name, shape), target in zip(self.content.shapes(1).items(), out, strict=True):
            key = self._layout.key(name, shard)
            where = self._layout.place(key)
            try:
                data, _ = self._layout.objects.get(key)
            except FileNotFoundError:
                raise IntegrityError(
                    f"{where}: shard {shard} is committed but gone; run jobs/generate.py verify"
                ) from None
            if sha256(data) != record["objects"][name]["stored_sha256"]:
                raise IntegrityError(
                    f"{where}: the {len(data)} bytes of shard {shard} are not those of its commit record; run "
                    "jobs/generate.py verify"
                )
            codec.decode(data, shape[1:], self.samples_per_shard, where=where, out=target, pool=self._pool)

    def _record(self, shard: int) -> dict[str, Any]:
        if shard not in self._records:
            record = read_commit(self._layout, shard) if shard in self.shards else None
            if record is None:
                raise IntegrityError(
                    f"{self.url}: shard {shard} is not committed; committed are {len(self.shards)} shards. Run "
                    "jobs/generate.py to make the missing ones"
                )
            self._records[shard] = record
        return self._records[shard]


def _joined(parts: list[Pairs]) -> Pairs:
    if len(parts) == 1:
        return parts[0]
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])
