"""What is seen from outside while a suite runs: when shards were committed, how busy the cores are, memory held."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import TracebackType

from dakter import storage


def peak_mb() -> float:
    """The most memory that this process ever held (resident), in MB (1e6 bytes)."""
    status = Path("/proc/self/status").read_text()  # ru_maxrss would count the parent's memory before exec
    return round(int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6, 1)


class Commits:
    """While this context is open, notes when each number of commit records below ``corpus`` was first seen.

    And how busy the machine's cores are, by all that runs on it.
    """

    def __init__(self, corpus: str, every_s: float = 0.1):
        self._url, self._every_s = storage.join(corpus, "commits"), every_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="dakter-watch", daemon=True)
        self.seen: list[tuple[float, int]] = []
        self._cores: list[tuple[float, int, int]] = []

    def at(self, count: int) -> float:
        """time.time() at which at least ``count`` records were first seen."""
        return next(when for when, number in self.seen if number >= count)

    def cores_busy(self, begin: float, end: float) -> float:
        """Share of the cores' time that was used between two times (time.time()), 0 to 1."""
        _, idle_a, all_a = max((row for row in self._cores if row[0] <= begin), default=self._cores[0])
        _, idle_b, all_b = min((row for row in self._cores if row[0] >= end), default=self._cores[-1])
        return 1 - (idle_b - idle_a) / max(1, all_b - all_a)

    def _watch(self) -> None:
        while True:
            self._cores.append((time.time(), *_cpu_ticks()))
            last = self._over.is_set()
            number = len(storage.sizes(self._url))
            if not self.seen or number > self.seen[-1][1]:
                self.seen.append((time.time(), number))
            if last:
                return
            self._over.wait(self._every_s)

    def __enter__(self) -> Commits:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()


def _cpu_ticks() -> tuple[int, int]:
    """Ticks of all cores since the machine began: idle or waiting for a disk, and all."""
    ticks = [int(word) for word in Path("/proc/stat").read_text().partition("\n")[0].split()[1:9]]
    return ticks[3] + ticks[4], sum(ticks)
