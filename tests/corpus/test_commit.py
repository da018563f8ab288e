"""Exactly once: whoever else writes, a committed shard's bytes are those of its record."""

from __future__ import annotations

import functools
import threading
from typing import Any

import numpy as np
import pytest
from fake_pairs import FakeSampler

from dakter import storage
from dakter.corpus import codec, commit, manifest, status
from dakter.corpus.commit import Outcome, read_commit, set_aside, write_shard
from dakter.corpus.layout import CorpusConfig, Layout
from dakter.corpus.shard import Arrays, compute, sha256
from dakter.errors import IntegrityError, StorageError

CONFIG = CorpusConfig(num_samples=32, samples_per_shard=8)


@pytest.fixture
def layout(place: str) -> Layout:
    layout = Layout.begin(place, CONFIG.identity(FakeSampler()))
    layout.grow(4)
    return layout


def arrays(shard: int, seed: int = 0) -> Arrays:
    return compute(FakeSampler(seed=seed), shard * 8, 8)


def stored(layout: Layout, shard: int, name: str = "image") -> bytes:
    return storage.read_bytes(layout.place(layout.key(name, shard)))


def in_order(layout: Layout, shard: int) -> bool:
    record = read_commit(layout, shard)
    assert record is not None
    return all(
        sha256(stored(layout, shard, name)) == record["objects"][name]["stored_sha256"] for name in record["objects"]
    )


def test_the_record_comes_last_and_describes_the_bytes(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    puts: list[str] = []
    create = layout.objects.create

    def note_create(key: str, data: bytes) -> str:
        puts.append(key)
        return create(key, data)

    monkeypatch.setattr(layout.objects, "create", note_create)
    outcome = write_shard(layout, 2, arrays(2), lambda: {"device": "cpu"})
    assert outcome.written
    assert puts == ["data.zarr/image/c.2.0.0.0", "data.zarr/soft_label/c.2.0.0.0", "commits/00000002.json"]
    assert (outcome.record["first"], outcome.record["count"]) == (16, 8)
    assert outcome.record["objects"]["image"]["decoded_sha256"] == sha256(arrays(2)["image"])
    assert in_order(layout, 2)
    assert layout.committed() == [2]


def test_many_writers_of_one_shard_agree_on_one_record(layout: Layout) -> None:
    outcomes: list[Outcome] = []
    start = threading.Barrier(6)

    def write(number: int) -> None:
        start.wait()
        outcomes.append(write_shard(layout, 0, arrays(0), functools.partial(dict, writer=number)))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(outcome.written for outcome in outcomes) == 1
    assert len({storage.to_json_bytes(outcome.record) for outcome in outcomes}) == 1
    assert in_order(layout, 0)


def test_writers_who_disagree_leave_the_committed_bytes(layout: Layout) -> None:
    start = threading.Barrier(4)
    raised: list[Exception] = []

    def write(seed: int) -> None:
        start.wait()
        try:
            write_shard(layout, 0, arrays(0, seed))
        except (IntegrityError, StorageError) as error:
            raised.append(error)

    threads = [threading.Thread(target=write, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not raised
    assert in_order(layout, 0)


def test_a_late_twin_changes_nothing(layout: Layout) -> None:
    first = write_shard(layout, 1, arrays(1))
    before = stored(layout, 1)
    late = write_shard(layout, 1, arrays(1, seed=9))  # woke up after its shard was made by another
    assert not late.written
    assert late.record == first.record
    assert stored(layout, 1) == before


def test_a_twin_that_replaced_between_two_looks_puts_back(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, other = arrays(3), arrays(3, seed=9)
    create = layout.objects.create
    raced: list[str] = []

    def slow_create(key: str, data: bytes) -> str:
        if raced == ["the other"] and key.startswith("commits/"):
            raise KeyboardInterrupt  # the other dies before its record
        tag = create(key, data)
        if "soft_label" in key and not raced:
            # After our objects and before our record: the other finds no record and replaces both.
            raced.append("the other")
            with pytest.raises(KeyboardInterrupt):
                write_shard(layout, 3, other)
            raced.append("done")
        return tag

    monkeypatch.setattr(layout.objects, "create", slow_create)
    assert write_shard(layout, 3, mine).written
    assert raced
    assert in_order(layout, 3)
    assert read_commit(layout, 3)["objects"]["image"]["decoded_sha256"] == sha256(mine["image"])  # type: ignore[index]


def test_a_loser_that_replaced_a_winners_bytes_puts_them_back(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, other = arrays(3), arrays(3, seed=9)
    storage.put_new(layout.place(layout.key("image", 3)), codec.encode("image", other["image"], 3))
    look = read_commit

    def late_look(layout: Layout, shard: int) -> dict[str, Any] | None:
        found = look(layout, shard)
        if found is None and not layout.committed():
            write_shard_untouched(layout, shard, other)  # the winner commits right after we looked
        return found

    write_shard_untouched = write_shard
    calls = iter([False, True])

    def second_look(layout: Layout, shard: int) -> dict[str, Any] | None:
        if next(calls, False):
            monkeypatch.setattr(commit, "read_commit", look)
            return late_look(layout, shard)
        return look(layout, shard)

    monkeypatch.setattr(commit, "read_commit", second_look)
    outcome = write_shard(layout, 3, mine)
    assert not outcome.written
    assert outcome.record["objects"]["image"]["decoded_sha256"] == sha256(other["image"])
    assert in_order(layout, 3)


def test_a_half_written_shard_is_adopted_or_replaced(layout: Layout) -> None:
    data = codec.encode("image", arrays(0)["image"], 3)
    storage.put_new(layout.place(layout.key("image", 0)), data)  # died after its first object
    storage.put_new(layout.place(layout.key("image", 1)), b"cut short")
    tag = layout.objects.tag(layout.key("image", 0))
    assert layout.committed() == []
    assert write_shard(layout, 0, arrays(0)).written
    assert layout.objects.tag(layout.key("image", 0)) == tag  # adopted, not written again
    assert write_shard(layout, 1, arrays(1)).written
    assert in_order(layout, 0)
    assert in_order(layout, 1)


def test_a_commit_outweighs_the_mark_of_failure(layout: Layout) -> None:
    set_aside(layout, 2, attempts=3, error="RuntimeError: no", traceback="Traceback ...")
    assert [row["shard"] for row in status.status(layout)["failed"]] == [2]
    write_shard(layout, 2, arrays(2))
    assert status.status(layout)["failed"] == []


def test_a_record_of_another_corpus_is_refused(layout: Layout) -> None:
    write_shard(layout, 0, arrays(0))
    record = storage.read_json(layout.place(layout.commit_key(0)))
    storage.put_json(layout.place(layout.commit_key(1)), record)
    with pytest.raises(IntegrityError, match="shard is 0; expected 1"):
        read_commit(layout, 1)
    assert [fault["kind"] for fault in manifest.verify(layout)["faults"]] == ["foreign"]


def test_order_and_interruption_leave_no_trace_in_the_digest(layout: Layout, tmp_path: Any) -> None:
    for shard in (3, 0, 2):
        write_shard(layout, shard, arrays(shard), functools.partial(dict, order=shard))
    partial = manifest.finalise(layout)
    assert partial["num_samples"] == 24
    write_shard(layout, 1, arrays(1))
    whole = manifest.finalise(layout)
    other = Layout.begin(str(tmp_path / "other"), CONFIG.identity(FakeSampler()))
    for shard in range(4):
        write_shard(other, shard, arrays(shard))
    assert manifest.finalise(other)["digest"] == whole["digest"] != partial["digest"]
    assert np.isclose(sum(whole["class_shares"]), 1)
