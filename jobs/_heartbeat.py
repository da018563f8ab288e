"""What the driver and the workers of a training tell each other: stop, nodes that leave, signs of life, steps done."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from typing import Any

from dakter.errors import DakterError
from jobs._redone import BEAT_S, Account

log = logging.getLogger("dakter.jobs.train")

# The last checkpoint before a node goes is begun so long before: time to write and upload it.
_MARGIN_S = 15.0
# When a notice names no time, Ray Train waits so long before it starts the workers again elsewhere.
_UNNAMED_S = 120.0


class Signals:
    """A Ray actor between the driver and the workers."""

    def __init__(self) -> None:
        self._stop, self._leaving = False, dict[str, float]()
        self._beats = 0
        self._account, self._informed = Account(), False
        self._first: int | None = None  # steps that were done when training began under this actor
        self._error: DakterError | None = None

    def tell(self, stop: bool, leaving: Mapping[str, float], known: Account) -> tuple[int, Account]:
        """By the driver: the wish to stop, when which node leaves, and the account as it last heard it.

        An actor that went down with its node and was started anew takes the account up from there.

        Returns:
            How many beats came so far, and the account.
        """
        self._stop, self._leaving = stop, dict(leaving)
        if not self._informed:
            self._informed, own = True, self._account
            again = max(0, known.furthest - self._first) if self._first is not None else 0
            self._account = Account(
                known.starts + own.starts,
                known.steps_redone + own.steps_redone + again,
                max(known.furthest, own.furthest),
            )
        return self._beats, self._account

    def begin(self, step: int) -> None:
        """By rank 0: training begins, or goes on, after ``step`` steps."""
        if self._first is None:
            self._first = step
        self._account = self._account.begun(step)

    def beat(self, node: str, step: int) -> tuple[bool, float | None]:
        """By a worker, with the steps it has done: (stop, when its node leaves in Unix seconds, None: it stays)."""
        self._beats += 1
        self._account = self._account.reached(step)
        return self._stop, self._leaving.get(node)

    def fail(self, error: DakterError) -> None:
        """By a worker: a failure that trying again would not mend."""
        self._error = error

    def failure(self) -> DakterError | None:
        return self._error

    def account(self) -> Account:
        return self._account


class Heartbeat:
    """A worker's side: a thread that beats, so that a step waits for no remote call.

    Args:
        signals: the handle of ``Signals``.
        node: Ray's id of this node.
    """

    def __init__(self, signals: Any, node: str):
        self._signals, self._node = signals, node
        self._stop = False
        self._leaves_at: float | None = None
        self._first_kept = self._last_kept = False
        self.step = 0
        self._beat()
        threading.Thread(target=self._work, name="dakter-heartbeat", daemon=True).start()

    def _work(self) -> None:
        while True:
            time.sleep(BEAT_S)
            self._beat()

    def _beat(self) -> None:
        import ray

        try:
            self._stop, leaves_at = ray.get(self._signals.beat.remote(self._node, self.step))
        except ray.exceptions.RayError as error:  # the actor restarts elsewhere; meanwhile the last word holds
            log.warning("no answer from the driver's actor: %s", error)
            return
        if leaves_at is not None and self._leaves_at is None:
            self._leaves_at = min(leaves_at, time.time() + _UNNAMED_S)
            log.warning("this node leaves in %.0f s; a checkpoint comes first", self._leaves_at - time.time())

    def should_stop(self) -> bool:
        return self._stop

    def should_checkpoint(self) -> bool:
        """Once when this node is told to leave, and once more shortly before it does."""
        if self._leaves_at is None or self._last_kept:
            return False
        if time.time() > self._leaves_at - _MARGIN_S:
            self._first_kept = self._last_kept = True
            return True
        first, self._first_kept = not self._first_kept, True
        return first

    def linger(self) -> None:
        """After the last checkpoint of a node that leaves: wait for its end, as further steps would be lost.

        The other ranks wait in the next exchange of gradients. Ray Train ends them all at the time that the notice
        named and starts again where there is room; if nothing comes, training goes on.
        """
        while self._last_kept and self._leaves_at is not None and not self._stop:
            if time.time() > self._leaves_at + _MARGIN_S:
                log.warning("this node was to leave %g s ago and is still here; training goes on", _MARGIN_S)
                return
            time.sleep(0.1)
