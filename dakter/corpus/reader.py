"""Reading a corpus for training: whole committed shards, checked, decoded by threads, shuffled across shards."""

from __future__ import annotations

import itertools
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from dakter.config import digest_json
from dakter.corpus import codec
from dakter.corpus.accept import Accept, accepted
from dakter.corpus.commit import read_commit
from dakter.corpus.layout import ARRAYS, Layout
from dakter.corpus.manifest import ranges, read_manifest, records
from dakter.corpus.order import Order, Window
from dakter.corpus.shard import sha256
from dakter.errors import DataError, IntegrityError

# Images uint8 (n, C, H, W) and soft labels uint8 (n, K, H, W) of the same samples.
Pairs = tuple[np.ndarray, np.ndarray]
_AHEAD = 2  # shards that are fetched and hashed beyond the one that is being decoded


class _Object(NamedTuple):
    """Bytes of a sound object; ``hashed``: just now, not in an earlier reading of the same version."""

    data: memoryview
    hashed: bool


class _Spare:
    """Batches whose memory may be used again, once nobody but this list refers to them.

    Fresh pages are dear: with four threads writing into them a sample of 256x256 cost 0.8 ms in the kernel, which is
    three times its decompression.
    """

    def __init__(self, make: Callable[[], Pairs]):
        self._make = make
        self._pairs: list[Pairs] = []
        self._most = 0

    def keep(self, most: int) -> None:
        """Remember so many at least."""
        self._most = max(self._most, most)

    def take(self) -> Pairs:
        for pair in self._pairs:
            # References to a free array: ``pair``, the loop's variable, the argument. Views and tensors count too.
            if all(sys.getrefcount(array) == 3 for array in pair):
                return pair[0], pair[1]  # another tuple: what the caller holds must count
        images, soft = self._make()
        if len(self._pairs) < self._most:
            self._pairs.append((images, soft))
        return images, soft


class CorpusReader:
    """The committed shards of a corpus at a local path or ``s3://`` URL, as they stood when it was opened.

    A partial corpus is valid. Every shard is checked against its commit record before a sample of it is used; read
    again, it is hashed again only if the store names another version of it, and the checksums of its samples count.

    Args:
        url: the corpus.
        threads: decoding threads.
        accept: the samples that ``batches`` visits: their indices, or the path or URL of a JSON document with them;
            None: all. See ``corpus/accept.py``.
        shards: the shards to go by, where somebody listed them already; None: those committed now.

    Raises:
        DataError: no corpus stands there; or the accept-list is none.
        IntegrityError: its arrays are not laid out as this reader expects; or samples are accepted that are not
            committed.
    """

    def __init__(
        self, url: str, *, threads: int = 4, accept: Accept | None = None, shards: Sequence[int] | None = None
    ):
        self._layout = Layout.open(url)
        self._layout.check_documents()
        self.url = url
        self.identity = self._layout.identity
        self.content = self._layout.content
        self.samples_per_shard = self._layout.samples_per_shard
        self.shards: tuple[int, ...] = tuple(self._layout.committed() if shards is None else shards)
        self._known = frozenset(self.shards)
        self.num_samples = sum(map(self._layout.size, self.shards))
        self._rows = accepted(accept, self.shards, self.samples_per_shard, self._layout)
        self.num_accepted = sum(len(rows) for _, rows in self._rows)
        self._records: dict[int, dict[str, Any]] = {}
        self._sound: dict[str, str] = {}  # key -> the version of it that has the hash of its commit record
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="dakter-decode")
        # A thread for each request that may be under way: a shard's record, then its objects.
        self._fetchers = ThreadPoolExecutor((1 + len(ARRAYS)) * (1 + _AHEAD), thread_name_prefix="dakter-fetch")

    @cached_property
    def manifest(self) -> dict[str, Any] | None:
        """``manifest.json`` as it stood when first asked for; None before the corpus is finalised."""
        return read_manifest(self._layout)

    @property
    def digest(self) -> str:
        """Digest over the decoded hashes of exactly the committed shards; the manifest's, if it covers the same."""
        if self.manifest and tuple(row["shard"] for row in self.manifest["ranges"]) == self.shards:
            return str(self.manifest["digest"])
        return digest_json(ranges(records(self._layout, self.shards)))

    @property
    def pieces(self) -> Sequence[tuple[int, np.ndarray]]:
        """(shard, ascending accepted rows of it) for each shard that has any."""
        return self._rows

    @property
    def indices(self) -> np.ndarray:
        """Accepted samples, ascending, int64 ``(num_accepted,)``."""
        size = self.samples_per_shard
        return np.concatenate([np.empty(0, np.int64), *(shard * size + rows for shard, rows in self._rows)])

    def read_shard(self, shard: int) -> Pairs:
        """All pairs of one shard: images uint8 ``(n, C, H, W)``, soft labels uint8 ``(n, K, H, W)``.

        Raises:
            IntegrityError: the shard is not committed, or its bytes are not those of its record.
        """
        out = self._empty(size := self._layout.size(shard))
        objects = [part.result() for part in self._fetch(shard)]
        beyond = [None] * (self.samples_per_shard - size)
        for part in self._decode(shard, objects, [[*target, *beyond] for target in out]):
            part.result()
        return out

    def sample(self, indices: Sequence[int] | np.ndarray) -> Pairs:
        """Pairs by their index in the corpus, in the order asked for; reads the whole shards that hold them.

        Raises:
            IntegrityError: as ``read_shard``, or an index beyond the end of the corpus.
        """
        wanted = np.asarray(indices, dtype=np.int64)
        where, row = np.divmod(wanted, self.samples_per_shard)
        images, soft = self._empty(len(wanted))
        for shard in np.unique(where):
            here = where == shard
            pairs = self.read_shard(int(shard))
            if row[here].max() >= len(pairs[0]):
                raise IntegrityError(
                    f"{self.url}: has no sample {wanted[here].max()}; expected 0 to {self.num_samples - 1}"
                )
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

        The order is that of ``order.Order``: the samples of as many shards as make ``shuffle_shards`` whole ones are
        permuted together. While a window is consumed the next one is decoded, each sample straight into its place in
        its batch. Memory: the batches of two windows, six compressed shards, and what the caller keeps: a batch is
        the caller's for as long as anything refers to it, then its memory is used again.

        Args:
            start_batch: where to begin: the batches are those that ``start_batch`` calls of ``next`` would skip to.
            rank, world: this reader's place among those that share the corpus.

        Yields:
            images uint8 ``(batch_size, C, H, W)``, soft labels uint8 ``(batch_size, K, H, W)``.

        Raises:
            DataError: fewer samples than ranks.
        """
        if batch_size < 1 or start_batch < 0 or shuffle_shards < 1 or not 0 <= rank < world:
            raise DataError(
                f"batches(batch_size={batch_size}, start_batch={start_batch}, shuffle_shards={shuffle_shards}, "
                f"rank={rank}, world={world}): expected batch_size, shuffle_shards >= 1, start_batch >= 0, rank < world"
            )
        order = Order(self._rows, shuffle_shards * self.samples_per_shard, seed, rank, world)
        if order.epoch_samples < 1:
            raise DataError(
                f"{self.url}: {self.num_accepted} committed and accepted samples for {world} readers; generate more "
                "samples, accept more, or use fewer readers"
            )
        return self._ahead(order.windows(start_batch * batch_size), batch_size)

    def _ahead(self, windows: Iterator[Window], batch_size: int) -> Iterator[Pairs]:
        left = threading.Event()
        filled = self._filled(windows, batch_size, left)
        with ThreadPoolExecutor(1, thread_name_prefix="dakter-ahead") as ahead:
            try:
                following = ahead.submit(next, filled)
                while True:
                    ready, running = following.result()
                    following = ahead.submit(next, filled)
                    for part in running:
                        part.result()
                    ready.reverse()
                    while ready:  # popped, so that a batch that the caller let go is free
                        yield ready.pop()
            finally:
                left.set()

    def _filled(
        self, windows: Iterator[Window], batch_size: int, left: threading.Event
    ) -> Iterator[tuple[list[Pairs], list[Future[None]]]]:
        """The batches that end in each window, and what is still under way to fill them.

        A batch that the next window goes on with comes with that one. Ends early once the caller ``left``: nobody
        waits for a window that is not wanted.
        """
        spare = _Spare(lambda: self._empty(batch_size))
        windows, coming = itertools.tee(windows)
        fetched = self._fetched(shard for window in coming for shard, _ in window.pieces)
        running: deque[list[Future[None]]] = deque()
        open_batch: Pairs | None = None
        held = 0
        for window in windows:
            total = held + int(window.places.max()) + 1
            spare.keep(2 * -(-total // batch_size))
            batches = [open_batch] if open_batch else []
            batches += [spare.take() for _ in range(-(-total // batch_size) - len(batches))]
            begin = 0
            for shard, rows in window.pieces:
                if left.is_set():
                    return
                targets: list[list[np.ndarray | None]] = [[None] * self.samples_per_shard for _ in ARRAYS]
                for row, place in zip(rows.tolist(), window.places[begin:].tolist(), strict=False):
                    if place >= 0:
                        number, at = divmod(held + place, batch_size)
                        for target, array in zip(targets, batches[number], strict=True):
                            target[row] = array[at]
                begin += len(rows)
                running.append(self._decode(shard, next(fetched), targets))
                # The next shard is at hand before this one ends, so that no thread is ever idle; more would only wait.
                if len(running) > 2:
                    for part in running.popleft():
                        part.result()
            held = total % batch_size
            open_batch = batches.pop() if held else None
            yield batches, [part for parts in running for part in parts]

    def _fetched(self, shards: Iterator[int]) -> Iterator[list[_Object]]:
        """The objects of ``shards``, checked, ``_AHEAD`` shards beyond the one asked for."""
        waiting: deque[list[Future[_Object]]] = deque()
        for shard in shards:
            waiting.append(self._fetch(shard))
            if len(waiting) > _AHEAD:
                yield [part.result() for part in waiting.popleft()]

    def _fetch(self, shard: int) -> list[Future[_Object]]:
        record = self._fetchers.submit(self._record, shard)
        return [self._fetchers.submit(self._object, shard, name, record) for name in ARRAYS]

    def _object(self, shard: int, name: str, asked: Future[dict[str, Any]]) -> _Object:
        """The bytes of one object, as the shard's commit record describes them."""
        record, key = asked.result(), self._layout.key(name, shard)
        try:
            data, version = self._layout.objects.version(key)
        except FileNotFoundError:
            raise IntegrityError(
                f"{self._layout.place(key)}: shard {shard} is committed but gone; run jobs/generate.py verify"
            ) from None
        if self._sound.get(key) == version:
            return _Object(data, hashed=False)
        if sha256(data) != record["objects"][name]["stored_sha256"]:
            raise IntegrityError(
                f"{self._layout.place(key)}: the {len(data)} bytes of shard {shard} are not those of its commit "
                "record; run jobs/generate.py verify"
            )
        self._sound[key] = version
        return _Object(data, hashed=True)

    def _decode(
        self, shard: int, objects: Sequence[_Object], targets: Sequence[Sequence[np.ndarray | None]]
    ) -> list[Future[None]]:
        return [
            part
            for name, found, places in zip(ARRAYS, objects, targets, strict=True)
            for part in codec.decode_into(
                found.data,
                places,
                where=self._layout.place(self._layout.key(name, shard)),
                pool=self._pool,
                hashed=found.hashed,
            )
        ]

    def _empty(self, count: int) -> Pairs:
        shapes = self.content.shapes(count)
        return np.empty(shapes["image"], np.uint8), np.empty(shapes["soft_label"], np.uint8)

    def _record(self, shard: int) -> dict[str, Any]:
        if shard not in self._records:
            record = read_commit(self._layout, shard) if shard in self._known else None
            if record is None:
                raise IntegrityError(
                    f"{self.url}: shard {shard} is not committed; committed are {len(self.shards)} shards. Run "
                    "jobs/generate.py to make the missing ones"
                )
            self._records[shard] = record
        return self._records[shard]
