"""What driver and workers of a training tell each other, without Ray around it."""

from __future__ import annotations

import pytest

from jobs._heartbeat import Signals
from jobs._redone import Account


def test_steps_that_were_done_again_are_counted_by_what_workers_told() -> None:
    signals = Signals()
    signals.begin(0)
    signals.beat("a", 17)
    signals.beat("b", 16)
    signals.begin(10)  # a node was lost; the last checkpoint was after step 10
    assert signals.account() == Account(starts=2, steps_redone=7, furthest=10)
    signals.beat("a", 20)
    signals.begin(20)  # told beforehand: a checkpoint after the last step
    assert signals.account() == Account(starts=3, steps_redone=7, furthest=20)
    assert signals.account().num_restarts == 2


@pytest.mark.parametrize("first", ["driver", "workers"])
def test_an_actor_that_went_down_takes_the_account_up_again(first: str) -> None:
    signals = Signals()
    signals.begin(0)
    signals.beat("a", 17)
    _, known = signals.tell(False, {}, Account())
    anew = Signals()  # with the node, or by Ray, whoever speaks to it first
    if first == "driver":
        anew.tell(False, {}, known)
    anew.begin(10)
    anew.beat("a", 12)
    _, told = anew.tell(False, {}, known)
    assert told == anew.account()
    assert (told.num_restarts, told.steps_redone) == (1, 7)
    assert anew.tell(False, {}, told)[1] == told, "once"


def test_an_actor_that_went_down_between_checkpoints_redid_nothing() -> None:
    anew = Signals()
    anew.tell(False, {}, Account(starts=1, steps_redone=3, furthest=30))
    anew.beat("a", 31)  # the workers never noticed
    assert anew.account() == Account(starts=1, steps_redone=3, furthest=31)


def test_a_node_hears_of_its_own_leave_alone() -> None:
    signals = Signals()
    assert signals.tell(False, {"a": 5.0}, Account())[0] == 0
    assert signals.beat("a", 1) == (False, 5.0)
    assert signals.beat("b", 1) == (False, None)
    assert signals.tell(True, {}, Account())[0] == 2
    assert signals.beat("a", 2) == (True, None)
