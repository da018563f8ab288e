"""Who may begin what: stops, caps, leaving nodes, attempts."""

from __future__ import annotations

import time

import pytest

from dakter.corpus.budget import BudgetConfig
from jobs._desk import Desk, Order


def test_attempts_count_unless_excused() -> None:
    desk = Desk(BudgetConfig(), 2)
    assert [desk.begin(7, "a").attempt for _ in range(2)] == [1, 2]
    desk.excuse(7, "the store was away")
    assert desk.begin(7, "b").attempt == 2
    assert desk.begin(8, "b").attempt == 1
    assert desk.recall(7) == "the store was away"


def test_a_shard_that_was_only_being_stored_hardly_counts_when_its_process_goes_down() -> None:
    desk = Desk(BudgetConfig(), 2)
    attempts = []
    for _ in range(9):  # its neighbour kills the process again and again
        attempts.append(desk.begin(7, "a").attempt)
        desk.drawn(7)
    assert attempts == [1, 1, 1, 1, 2, 2, 2, 2, 3], "yet not for ever: it may be its own doing"


def test_an_error_of_its_own_counts_in_full_though_the_shard_was_drawn() -> None:
    desk = Desk(BudgetConfig(), 2)
    for attempt in (1, 2, 3):
        assert desk.begin(7, "a").attempt == attempt
        desk.drawn(7)
        desk.note(7, "a traceback")


def test_a_stop_reaches_those_who_begin_and_those_who_work() -> None:
    desk = Desk(BudgetConfig(), 2)
    assert desk.beat("a").do == "make"
    desk.watch(True, {}, 0.0, 0)
    desk.watch(False, {}, 0.0, 0)  # a wish to stop is not taken back
    assert desk.begin(1, "a") == Order("stop")
    assert desk.beat("a").do == "stop"


def test_no_shard_is_begun_on_a_node_that_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    desk, gone_at = Desk(BudgetConfig(), 2), time.time() + 100
    desk.watch(False, {"a": gone_at, "c": float("inf")}, 0.0, 0)
    assert desk.begin(1, "a").do == "wait"
    assert desk.begin(1, "c").do == "wait", "also when it has no deadline"
    assert desk.begin(1, "b") == Order("make", 1)
    assert desk.beat("a") == Order("make", 0, gone_at), "what is in hand may be finished until then"
    monkeypatch.setattr(time, "time", lambda: gone_at + 61)
    assert desk.begin(2, "a") == Order("make", 1), "it stayed after all"


def test_bytes_in_hand_count_against_the_cap() -> None:
    desk = Desk(BudgetConfig(max_bytes=250), 2)
    assert desk.begin(0, "a").do == "make"
    desk.end(0, 1.0, 100)
    assert desk.begin(1, "a").do == "make"
    assert desk.begin(2, "b") == Order("stop"), "100 stored and 100 in hand leave no room for another 100"
    assert desk.beat("a").do == "make", "what is in hand is finished"
    silence_s, reason = desk.watch(False, {}, 0.0, 100)
    assert "budget.max_bytes is 250" in str(reason)
    assert silence_s < 60


def test_a_cap_that_is_passed_stops_what_is_in_hand() -> None:
    desk = Desk(BudgetConfig(max_hours=1), 1)
    assert desk.begin(0, "a").do == "make"
    desk.watch(False, {}, 3599.0, 0)
    assert desk.beat("a").do == "make"
    desk.watch(False, {}, 3600.0, 0)
    assert desk.beat("a").do == "stop"
