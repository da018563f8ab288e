"""The desk between the driver of a generation and its sampling actors: who may begin what, and who is still alive."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

from dakter.corpus.budget import BudgetConfig, Forecast, hindrance

# How long after a drained node should be gone it is believed that it stays after all.
_OVERDUE_S = 60.0
# What counts of an attempt whose process went down while the shard was only being stored: the one that was being drawn
# beside it is the likelier cause. Not nothing, or a shard that kills its process there would do so for ever.
_BYSTANDER = 0.25


@dataclass(frozen=True)
class Order:
    """What an actor is told: make the shard, wait (its node is being drained), or stop.

    Attributes:
        attempt: of the shard within this run, from 1; 0 unless ``make``.
        until: time by the wall clock at which the shard in hand must be given up.
    """

    do: Literal["make", "wait", "stop"]
    attempt: int = 0
    until: float = float("inf")


class Desk:
    """A small Ray actor. Every call of a worker counts as a sign of life.

    The counts are of one run: they tell a shard that kills its process from bad luck. Nothing that must last is here:
    a desk that is started anew learns what it needs from ``watch``.
    """

    def __init__(self, budget: BudgetConfig, workers: int):
        self._budget, self._workers = budget, workers
        self._forecast = Forecast()
        self._stop = False
        self._reason: str | None = None
        self._spent_s, self._stored = 0.0, 0
        self._begun: dict[int, float] = {}
        self._drawn: set[int] = set()
        self._in_hand: set[int] = set()
        self._draining: dict[str, float] = {}
        self._notes: dict[int, str] = {}
        self._last_sign = time.monotonic()

    def begin(self, shard: int, node: str) -> Order:
        """May the actor on ``node`` begin ``shard``? Counts the attempt if so."""
        self._last_sign = time.monotonic()
        self._in_hand.discard(shard)
        if shard in self._drawn:  # its process went down after it was drawn
            self._drawn.discard(shard)
            self._begun[shard] -= 1 - _BYSTANDER
        self._check_budget()
        if self._stop or self._reason:
            return Order("stop")
        if self._until(node) < float("inf") or self._draining.get(node) == float("inf"):
            return Order("wait")
        self._begun[shard] = self._begun.get(shard, 0) + 1
        self._in_hand.add(shard)
        return Order("make", int(self._begun[shard]), self._until(node))

    def drawn(self, shard: int) -> None:
        """All samples of a shard are drawn; it is being stored while the next one is drawn by the same process."""
        self._last_sign = time.monotonic()
        self._drawn.add(shard)

    def excuse(self, shard: int, note: str) -> None:
        """The last attempt failed for no fault of the shard: a store, disk or memory, or a node that is leaving."""
        self._last_sign = time.monotonic()
        self._in_hand.discard(shard)
        self._drawn.discard(shard)
        self._begun[shard] = max(0, self._begun.get(shard, 0) - 1)
        self._notes[shard] = note

    def note(self, shard: int, text: str) -> None:
        """Remember what went wrong with a shard, should its process die."""
        self._drawn.discard(shard)  # its own doing, not a neighbour's
        self._notes[shard] = text

    def recall(self, shard: int) -> str:
        """The last note on a shard, or nothing."""
        return self._notes.get(shard, "")

    def end(self, shard: int, seconds: float, stored: int) -> None:
        """A shard is out of an actor's hands: committed with ``stored`` bytes, or given up (0)."""
        self._last_sign = time.monotonic()
        self._in_hand.discard(shard)
        self._drawn.discard(shard)
        if stored:
            self._stored += stored
            self._forecast.learn(seconds, stored)

    def beat(self, node: str) -> Order:
        """A sign of life; returns whether to go on, and until when."""
        self._last_sign = time.monotonic()
        if self._stop:
            return Order("stop")
        return Order("make", until=self._until(node))

    def watch(self, stop: bool, draining: dict[str, float], spent_s: float, stored: int) -> tuple[float, str | None]:
        """From the driver, again and again.

        Args:
            stop: the wish to stop at once.
            draining: nodes that are about to leave -> when, by the wall clock.
            spent_s, stored: worker seconds and stored bytes of the corpus so far.

        Returns:
            Seconds since the last sign of life, and the cap that was reached, in words.
        """
        self._stop = self._stop or stop
        self._draining = draining
        self._spent_s, self._stored = max(self._spent_s, spent_s), max(self._stored, stored)
        self._check_budget(begin=False)
        return time.monotonic() - self._last_sign, self._reason

    def _check_budget(self, *, begin: bool = True) -> None:
        found = hindrance(
            self._budget,
            spent_s=self._spent_s,
            stored=self._stored,
            workers=self._workers,
            in_hand=len(self._in_hand),
            forecast=self._forecast,
        )
        if found is None:
            return
        text, passed = found
        if begin or passed:
            self._reason = text
        self._stop = self._stop or passed

    def _until(self, node: str) -> float:
        """When a node is gone; never, if it should have been gone for a while and still is not."""
        at = self._draining.get(node, float("inf"))
        return at if time.time() < at + _OVERDUE_S else float("inf")
