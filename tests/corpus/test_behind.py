"""The writer beside the sampler commits what it was given, tells its errors, and holds one shard at most."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from fake_pairs import FakeSampler

from dakter.corpus import behind, manifest
from dakter.corpus.behind import WriteBehind
from dakter.corpus.commit import write_shard
from dakter.corpus.layout import CorpusConfig, Layout
from dakter.corpus.shard import Arrays, compute
from dakter.errors import StorageError


@pytest.fixture
def layout(tmp_path: Any) -> Layout:
    layout = Layout.begin(str(tmp_path / "c"), CorpusConfig(samples_per_shard=8).identity(FakeSampler()))
    layout.grow(4)
    return layout


def arrays(shard: int) -> Arrays:
    return compute(FakeSampler(), shard * 8, 8)


def test_all_is_committed_at_the_end_and_one_at_a_time(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    go, running, most = threading.Event(), [], []

    def slow(layout: Layout, shard: int, *rest: Any, **more: Any) -> Any:
        running.append(shard)
        go.wait(30)
        most.append(len(running))
        outcome = write_shard(layout, shard, *rest, **more)
        running.remove(shard)
        return outcome

    monkeypatch.setattr(behind, "write_shard", slow)
    with WriteBehind(layout) as writer:
        first = writer.submit(0, arrays(0), {"device": "cpu"})  # returns though nothing is written yet
        assert not first.done()
        assert layout.committed() == []
        go.set()
        for shard in (1, 2, 3):
            writer.submit(shard, arrays(shard))
    assert layout.committed() == [0, 1, 2, 3]
    assert most == [1, 1, 1, 1]
    assert first.result().record["facts"] == {"device": "cpu"}


def test_arrays_are_used_again_once_they_are_written(layout: Layout) -> None:
    with WriteBehind(layout) as writer:
        used = []
        for shard in range(4):
            pairs = compute(FakeSampler(), shard * 8, 8, out=writer.spare())
            used.append(id(pairs))
            writer.submit(shard, pairs)
    assert used[2] == used[0] != used[1] == used[3]
    faults = manifest.verify(layout)["faults"]
    assert faults == []
    assert len({record["objects"]["image"]["decoded_sha256"] for record in manifest.records(layout, range(4))}) == 4


def test_an_error_reaches_the_caller(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **more: Any) -> Any:
        raise StorageError("disk full")

    monkeypatch.setattr(behind, "write_shard", refuse)
    writer = WriteBehind(layout)
    writer.submit(0, arrays(0))
    with pytest.raises(StorageError, match="disk full"):
        writer.submit(1, arrays(1))
    with pytest.raises(StorageError, match="disk full"), WriteBehind(layout) as writer:
        writer.submit(0, arrays(0))
