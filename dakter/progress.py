"""Progress of long work as log lines: done, share, throughput, time left. Readable in a terminal and in job logs."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator

# Observers hear of a piece of work this often, and at its end.
_TOLD_EVERY_S = 1.0
_observers: list[Callable[[Progress], None]] = []


def duration(seconds: float) -> str:
    """``"42 s"``, ``"3 min 07 s"``, ``"2 h 05 min"``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def observe(observer: Callable[[Progress], None]) -> None:
    """Have ``observer`` told of all progress in this process, at most once a second each; twice counts once."""
    if observer not in _observers:
        _observers.append(observer)


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """Keep diffusers from drawing progress bars meanwhile: in the log of a job every redraw is a line of its own."""
    from diffusers.utils import logging as bars  # with all of diffusers, where a model is really loaded

    drawn = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if drawn:
            bars.enable_progress_bar()


class Progress:
    """Counts finished items and logs at most every ``every_s`` seconds, and once at the end.

    Args:
        log: where to.
        what: the work, e.g. ``"generate"``.
        total: items in all.
        unit: plural of an item, e.g. ``"samples"``.
        done: items finished before this start (a resume); they do not count into the throughput.
    """

    def __init__(self, log: logging.Logger, what: str, total: int, unit: str, *, done: int = 0, every_s: float = 10.0):
        self._log, self.what, self.unit, self._every_s = log, what, unit, every_s
        self.total, self.done, self._before = total, done, done
        self._start = self._last = time.monotonic()
        self._told = float("-inf")

    @property
    def seconds(self) -> float:
        """Since the start of this run."""
        return time.monotonic() - self._start

    @property
    def rate(self) -> float:
        """Items a second in this run."""
        return (self.done - self._before) / max(self.seconds, 1e-9)

    def advance(self, count: int = 1, note: str = "") -> None:
        """``count`` more items are finished; ``note`` (a loss, say) goes into the line."""
        self.done += count
        now = time.monotonic()
        if now - self._told >= _TOLD_EVERY_S or self.done >= self.total:
            self._told = now
            for observer in _observers:
                observer(self)
        if now - self._last < self._every_s and self.done < self.total:
            return
        self._last = now
        share = 100 * self.done / self.total if self.total else 100
        left = (self.total - self.done) / self.rate if self.rate > 0 else None
        if self.done >= self.total:
            end = f"done in {duration(self.seconds)}"
        else:
            end = "time left unknown" if left is None else f"{duration(left)} left"
        self._log.info(
            "%s %d/%d (%.0f %%) · %.3g %s/s · %s%s",
            self.what,
            self.done,
            self.total,
            share,
            self.rate,
            self.unit,
            end,
            f" · {note}" if note else "",
            extra={
                "fields": {
                    "what": self.what,
                    "unit": self.unit,
                    "done": self.done,
                    "total": self.total,
                    "rate_per_s": round(self.rate, 6),
                    "left_s": None if left is None else round(left, 1),
                }
            },
        )
