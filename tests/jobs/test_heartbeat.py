"""What driver and workers of a training tell each other, without Ray around it."""

from __future__ import annotations

from jobs._heartbeat import Account, Signals


def test_steps_that_were_done_again_are_counted_by_what_workers_told() -> None:
    signals = Signals()
    signals.begin(0)
    signals.beat("a", 17)
    signals.beat("b", 16)
    signals.begin(10)  # a node was lost; the last checkpoint was after step 10
    assert signals.account() == Account(num_restarts=1, steps_redone=7)
    signals.beat("a", 20)
    signals.begin(20)  # told beforehand: a checkpoint after the last step
    assert signals.account() == Account(num_restarts=2, steps_redone=7)


def test_a_node_hears_of_its_own_leave_alone() -> None:
    signals = Signals()
    assert signals.tell(False, {"a": 5.0}) == 0
    assert signals.beat("a", 1) == (False, 5.0)
    assert signals.beat("b", 1) == (False, None)
    assert signals.tell(True, {}) == 2
    assert signals.beat("a", 2) == (True, None)
