"""A shard packed micro-batch by micro-batch is the shard packed at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from fake_pairs import FakeSampler

from dakter.corpus import codec
from dakter.corpus.commit import write_shard
from dakter.corpus.layout import ARRAYS, CorpusConfig, Layout
from dakter.corpus.pack import Packer, make, pack
from dakter.corpus.shard import compute, sha256
from dakter.errors import DataError


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout.begin(str(tmp_path / "corpus"), CorpusConfig(samples_per_shard=24).identity(FakeSampler()))
    layout.grow(2)
    return layout


@pytest.mark.parametrize("threads", [0, 3])
def test_made_while_drawn_is_packed_at_once(layout: Layout, threads: int) -> None:
    arrays = compute(FakeSampler(), 24, 24)
    whole = pack(arrays, 3)
    with ThreadPoolExecutor(threads or 1) as pool:
        made = make(layout, FakeSampler(), 1, pool=pool if threads else None)()
    assert made == whole
    for name in ARRAYS:
        assert whole.objects[name] == codec.encode(name, arrays[name], 3)
        assert whole.stored_sha256[name] == sha256(whole.objects[name])
        assert whole.decoded_sha256[name] == sha256(arrays[name])


def test_a_packed_shard_and_its_arrays_are_committed_alike(layout: Layout) -> None:
    packed = write_shard(layout, 1, make(layout, FakeSampler(), 1)())
    assert packed.written
    again = write_shard(layout, 0, compute(FakeSampler(), 0, 24)).record
    assert {**again, "facts": {}} == {
        **write_shard(layout, 0, make(layout, FakeSampler(), 0)()).record,
        "facts": {},
    }
    for name in ARRAYS:
        assert sha256(layout.objects.view(layout.key(name, 1))) == packed.record["objects"][name]["stored_sha256"]


def test_making_is_polled_before_each_micro_batch_and_can_be_given_up(layout: Layout) -> None:
    calls = []

    def poll() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("given up")

    with pytest.raises(RuntimeError, match="given up"):
        make(layout, FakeSampler(), 0, poll)
    assert len(calls) == 3


def test_nothing_to_pack_is_an_error() -> None:
    with pytest.raises(DataError, match="image"):
        pack({"image": np.zeros((0, 1, 4, 4), np.uint8), "soft_label": np.zeros((0, 2, 4, 4), np.uint8)}, 3)
    with pytest.raises(DataError, match="no sample"):
        Packer(3).finish()
