"""Where a corpus stands is told from storage alone: what is in flight, how fast, how long still, what it cost."""

from __future__ import annotations

import time

import pytest
from fake_pairs import FakeSampler

from dakter import storage
from dakter.corpus import ledger
from dakter.corpus.commit import set_aside, write_shard
from dakter.corpus.layout import CorpusConfig, Layout
from dakter.corpus.shard import compute
from dakter.corpus.status import lines, status
from dakter.errors import StorageError


@pytest.fixture
def layout(place: str) -> Layout:
    layout = Layout.begin(place, CorpusConfig(samples_per_shard=8).identity(FakeSampler()))
    layout.grow(6)
    for shard in range(3):
        write_shard(layout, shard, compute(FakeSampler(), shard * 8, 8))
        time.sleep(0.4 if storage.is_remote(place) else 0.05)  # S3 tells whole seconds
    return layout


def in_hand(layout: Layout, shard: int, monkeypatch: pytest.MonkeyPatch) -> ledger.Working:
    monkeypatch.setattr(ledger, "_BRIEF_S", 0.0)
    working = ledger.Working(layout, "host pid 1")
    working.begin(shard, 1)
    working.beat()
    return working


def test_rate_and_time_left_while_somebody_works(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    found = status(Layout.open(layout.url))
    assert (found["in_flight"], found["samples_per_second"], found["seconds_left"]) == ([], None, None)
    working = in_hand(layout, 3, monkeypatch)
    found = status(Layout.open(layout.url))
    assert [(row["shard"], row["attempt"], row["where"]) for row in found["in_flight"]] == [(3, 1, "host pid 1")]
    assert found["samples_per_second"] > 0
    assert found["seconds_left"] == pytest.approx(3 * 8 / found["samples_per_second"], abs=0.06)
    assert any("in flight: 3 (attempt 1, host pid 1)" in line for line in lines(found))
    working.end()
    assert status(layout)["in_flight"] == []


def test_the_dead_are_told_from_the_living(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    in_hand(layout, 4, monkeypatch)
    run = ledger.RunRecord(layout, 2, 0.0, 0)
    run.beat()
    assert status(layout)["runs"][0]["outcome"] == "running"
    later = time.time() + 10 * ledger.REFRESH_S
    monkeypatch.setattr(time, "time", lambda: later)
    found = status(layout)
    assert found["in_flight"] == []
    assert [row["outcome"] for row in found["runs"]] == ["lost"]
    ledger.sweep(layout)
    assert storage.sizes(layout.place("working")) == {}


def test_what_runs_cost_adds_up(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    first = ledger.RunRecord(layout, 3, 0.0, 0)
    monkeypatch.setattr(time, "monotonic", lambda: now + 1200)
    first.count(100)
    first.end("done")
    second = ledger.RunRecord(layout, 1, ledger.spent_s(layout), first.stored)
    assert (second.spent_s, second.stored) == (3600.0, 100)
    found = status(layout)
    assert found["worker_hours"] == 1.0
    assert [(row["outcome"], row["shards"], row["bytes"]) for row in found["runs"]] == [("done", 1, 100)]


def test_what_cannot_be_recorded_does_not_stop_work(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(url: str, data: object) -> None:
        raise StorageError(f"{url}: no space")

    monkeypatch.setattr(storage, "put_json", refuse)
    in_hand(layout, 4, monkeypatch).end()
    ledger.RunRecord(layout, 1, 0.0, 0).end("done")
    assert status(layout)["runs"] == []


def test_failures_come_with_their_reasons(layout: Layout) -> None:
    set_aside(layout, 5, attempts=3, error="RuntimeError: no", traceback="...")
    assert "  shard 5 (3 attempts): RuntimeError: no" in lines(status(layout))
