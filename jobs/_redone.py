"""How much work was done again because workers were lost: accounts that outlive the workers they are about."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

log = logging.getLogger("dakter.jobs.ray")

BEAT_S = 1.0  # how often a worker tells what it has done
_COSTS = ("num_restarts", "steps_redone")


@dataclass(frozen=True)
class Account:
    """What a training, or one student, cost beside its steps, since its driver began.

    Attributes:
        starts: of its workers together, the first one included.
        steps_redone: steps that were done again. Workers tell once a second what they have done, so steps within the
            last second of a lost worker are not in it.
        furthest: steps done at most.
    """

    starts: int = 0
    steps_redone: int = 0
    furthest: int = 0

    @property
    def num_restarts(self) -> int:
        return max(0, self.starts - 1)

    def begun(self, step: int) -> Account:
        """Work begins, or goes on, after ``step`` steps."""
        return Account(self.starts + 1, self.steps_redone + max(0, self.furthest - step), step)

    def reached(self, step: int) -> Account:
        """``step`` steps are done."""
        return replace(self, furthest=max(self.furthest, step))

    def costs(self) -> dict[str, int]:
        """As records tell it; ``total`` adds such tables."""
        return {key: getattr(self, key) for key in _COSTS}


def total(*records: Mapping[str, Any]) -> dict[str, int]:
    """The costs that stand in ``records``, added; one made before they were counted has none."""
    return {key: sum(int(record.get(key, 0)) for record in records) for key in _COSTS}


class Tally:
    """A Ray actor beside the driver: the account of every student, by its name. A student starts over at step 0."""

    def __init__(self) -> None:
        self._accounts: dict[str, Account] = {}

    def begin(self, student: str) -> Account:
        """By a worker that takes the student up: what it has cost so far."""
        self._accounts[student] = self._accounts.get(student, Account()).begun(0)
        return self._accounts[student]

    def reach(self, student: str, step: int) -> None:
        """By the same worker, as it goes."""
        self._accounts[student] = self._accounts.get(student, Account(1)).reached(step)


class Steps:
    """A worker's side: called after every step, it tells the tally the first at once and then one a second.

    Args:
        tally: the handle of ``Tally``.
        student: its name.

    Attributes:
        account: of the student when this worker took it up.
    """

    def __init__(self, tally: Any, student: str):
        import ray

        self._tally, self._student, self._told = tally, student, -BEAT_S
        self.account: Account = ray.get(tally.begin.remote(student))
        if self.account.num_restarts:
            log.warning("%s: its worker was lost or failed; it starts over", student)

    def __call__(self, step: int) -> None:
        now = time.monotonic()
        if now - self._told >= BEAT_S:
            self._told = now
            self._tally.reach.remote(self._student, step)  # not waited for: a step must not wait for the driver
