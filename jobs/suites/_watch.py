"""What is seen from outside while a suite runs: when shards were committed, how busy the cores are, memory held."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from dakter import storage
from dakter.corpus.layout import Layout
from dakter.corpus.manifest import records


def peak_mb() -> float:
    """The most memory that this process ever held (resident), in MB (1e6 bytes)."""
    status = Path("/proc/self/status").read_text()  # ru_maxrss would count the parent's memory before exec
    return round(int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6, 1)


def clock(layout: Layout) -> tuple[float, list[float]]:
    """When the first sample of a corpus was begun, and when its shards stood but for their commit records, in order.

    Those come within milliseconds. By time.time() of the workers' clocks, in the commit records: to look for commits
    from outside, many times a second, would take time of the cores and of the store.
    """
    facts = [record["facts"] for record in records(layout, layout.committed())]
    began = min(float(row["committed_at"]) - float(row["worker_s"]) for row in facts)
    return began, sorted(float(row["committed_at"]) for row in facts)


class _Watch:
    """Looks again and again in a thread, while this context is open, and once more at its end."""

    def __init__(self, every_s: float):
        self._every_s, self._over = every_s, threading.Event()
        self._thread = threading.Thread(target=self._watch, name="dakter-watch", daemon=True)

    def _look(self) -> None:
        raise NotImplementedError

    def _watch(self) -> None:
        while True:
            last = self._over.is_set()
            self._look()
            if last:
                return
            self._over.wait(self._every_s)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()


class Commits(_Watch):
    """Notes when each number of commit records below ``corpus`` was first seen: (time.time(), number)."""

    def __init__(self, corpus: str, every_s: float):
        super().__init__(every_s)
        self._url = storage.join(corpus, "commits")
        self.seen: list[tuple[float, int]] = []

    def _look(self) -> None:
        number = len(storage.sizes(self._url))
        if not self.seen or number > self.seen[-1][1]:
            self.seen.append((time.time(), number))


class Cores(_Watch):
    """Notes how busy the machine's cores are, by all that runs on it."""

    def __init__(self, every_s: float = 0.1):
        super().__init__(every_s)
        self._seen: list[tuple[float, int, int]] = []

    def _look(self) -> None:
        ticks = [int(word) for word in Path("/proc/stat").read_text().partition("\n")[0].split()[1:9]]
        self._seen.append((time.time(), ticks[3] + ticks[4], sum(ticks)))  # idle or waiting for a disk; all

    def busy(self, begin: float, end: float) -> float:
        """Share of their time that was used between two times (time.time()), 0 to 1."""
        _, idle_a, all_a = max((row for row in self._seen if row[0] <= begin), default=self._seen[0])
        _, idle_b, all_b = min((row for row in self._seen if row[0] >= end), default=self._seen[-1])
        return 1 - (idle_b - idle_a) / max(1, all_b - all_a)
