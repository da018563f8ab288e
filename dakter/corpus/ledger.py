"""What is under way and what it has cost: records for operators and for spending caps.

    working/<worker>.json    the shard that a worker has in hand, refreshed while it works, removed when it is done
    runs/<id>.json           one start of the job: its workers, the seconds that they were held, what it made

No sample depends on them. A record that cannot be written is worth a warning, never a shard; what is left behind by
the dead is told from the living by its age.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from dakter import storage
from dakter.corpus.layout import Layout
from dakter.errors import IntegrityError, StorageError

log = logging.getLogger("dakter.corpus")

# A worker refreshes its record so often; one not refreshed for three times as long is taken for dead.
REFRESH_S = 30.0
_SILENT_S = 3 * REFRESH_S
_BRIEF_S = 5.0  # a shard done sooner is not worth two requests: of 2.6 s each they took some percent of the sampling
_AT_ONCE = 16


class Working:
    """One worker's record of the shard in its hands."""

    def __init__(self, layout: Layout, where: str):
        self._layout, self._where = layout, where
        self._key = f"working/{uuid.uuid4().hex}.json"
        self._shard: dict[str, Any] | None = None
        self._next_put, self._stands = 0.0, False

    def begin(self, shard: int, attempt: int) -> None:
        """A shard is begun."""
        self._shard = {"shard": shard, "attempt": attempt, "since": time.time(), "where": self._where}
        self._next_put = time.monotonic() + _BRIEF_S

    def beat(self) -> None:
        """Still at it; writes at most every ``REFRESH_S``."""
        if self._shard is None or time.monotonic() < self._next_put:
            return
        self._next_put, self._stands = time.monotonic() + REFRESH_S, True
        record = {**self._shard, "beat": time.time()}
        _advisory(lambda: storage.put_json(self._layout.place(self._key), record))

    def end(self) -> None:
        """The shard left the worker's hands."""
        self._shard = None
        if self._stands:
            self._stands = False
            _advisory(lambda: storage.delete(self._layout.place(self._key)))


class RunRecord:
    """One start of the job, in ``runs/``: what its workers cost, whether or not it lived to say so."""

    def __init__(self, layout: Layout, workers: int, spent_before_s: float, stored_before: int):
        self._layout, self.workers = layout, workers
        self._key = f"runs/{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{uuid.uuid4().hex[:8]}.json"
        self._start, self._began = time.monotonic(), time.time()
        self._put_at = float("-inf")
        self._spent_before_s, self._stored_before = spent_before_s, stored_before
        self.shards, self.bytes = 0, 0

    def count(self, stored: int) -> None:
        """A shard was committed with ``stored`` bytes, or stood already (0)."""
        self.shards += bool(stored)
        self.bytes += stored

    @property
    def worker_s(self) -> float:
        """Seconds that workers were held by this run so far, busy or not."""
        return self.workers * (time.monotonic() - self._start)

    @property
    def spent_s(self) -> float:
        """Worker seconds of the corpus: earlier runs and this one."""
        return self._spent_before_s + self.worker_s

    @property
    def stored(self) -> int:
        """Bytes of committed shards: those that stood and those of this run."""
        return self._stored_before + self.bytes

    def beat(self) -> None:
        """Write how it stands, at most every ``REFRESH_S``."""
        if time.monotonic() - self._put_at >= REFRESH_S:
            self._put("running")

    def end(self, outcome: str) -> None:
        self._put(outcome)

    def _put(self, outcome: str) -> None:
        self._put_at = time.monotonic()
        record = {
            "began": self._began,
            "beat": time.time(),
            "workers": self.workers,
            "worker_s": round(self.worker_s, 3),
            "shards": self.shards,
            "bytes": self.bytes,
            "outcome": outcome,
        }
        _advisory(lambda: storage.put_json(self._layout.place(self._key), record))


def runs(layout: Layout) -> list[dict[str, Any]]:
    """Every start of the job, oldest first; one whose last sign is old and that never ended has outcome ``lost``."""
    found = sorted(_records(layout, "runs"), key=lambda record: float(record["began"]))
    return [
        {**record, "outcome": "lost"} if record["outcome"] == "running" and _silent(record) else record
        for record in found
    ]


def spent_s(layout: Layout) -> float:
    """Worker seconds of all runs on record."""
    return float(sum(record["worker_s"] for record in _records(layout, "runs")))


def in_flight(layout: Layout, committed: set[int]) -> list[dict[str, Any]]:
    """Shards in the hands of workers that gave a sign lately, by shard."""
    found = [
        record for record in _records(layout, "working") if record["shard"] not in committed and not _silent(record)
    ]
    return sorted(found, key=lambda record: int(record["shard"]))


def sweep(layout: Layout) -> None:
    """Remove the records of workers that died with a shard in hand."""
    for name in storage.sizes(layout.place("working")):
        key = f"working/{name}"
        try:
            if _silent(layout.read_json(key)):
                storage.delete(layout.place(key))
        except (FileNotFoundError, StorageError, IntegrityError, TypeError, KeyError):
            continue


def _silent(record: dict[str, Any]) -> bool:
    return bool(time.time() - float(record["beat"]) > _SILENT_S)


def _records(layout: Layout, folder: str) -> list[dict[str, Any]]:
    def read(name: str) -> dict[str, Any] | None:
        try:
            record = layout.read_json(f"{folder}/{name}")
        except (FileNotFoundError, IntegrityError):  # gone meanwhile, or not ours
            return None
        return record if isinstance(record, dict) and "beat" in record else None

    names = [name for name in storage.sizes(layout.place(folder)) if name.endswith(".json")]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return [record for record in pool.map(read, names) if record is not None]


def _advisory(what: Callable[[], None]) -> None:
    try:
        what()
    except StorageError as error:
        log.warning("not recorded, work goes on: %s", error)
