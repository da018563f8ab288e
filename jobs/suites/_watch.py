"""When shards were committed, seen from outside: by listing the commit records again and again."""

from __future__ import annotations

import threading
import time
from types import TracebackType

from dakter import storage


class Commits:
    """While this context is open, notes when each number of commit records below ``corpus`` was first seen."""

    def __init__(self, corpus: str, every_s: float = 0.1):
        self._url, self._every_s = storage.join(corpus, "commits"), every_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="dakter-watch", daemon=True)
        self.seen: list[tuple[float, int]] = []

    def at(self, count: int) -> float:
        """time.time() at which at least ``count`` records were first seen."""
        return next(when for when, number in self.seen if number >= count)

    def _watch(self) -> None:
        while True:
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
