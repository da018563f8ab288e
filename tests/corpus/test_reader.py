"""Readers get committed, checked shards alone, in an order that is a function of its arguments."""

from __future__ import annotations

import os
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pytest
from fake_pairs import FakeSampler

from dakter import storage
from dakter.corpus import manifest
from dakter.corpus.commit import write_shard
from dakter.corpus.layout import CorpusConfig, Layout
from dakter.corpus.reader import CorpusReader
from dakter.corpus.shard import compute
from dakter.errors import DataError, IntegrityError

SHARDS = (0, 1, 2, 4, 6)  # a partial corpus
IMAGES, SOFT = compute(FakeSampler(), 0, 56).values()
EVERYTHING = [i for shard in SHARDS for i in range(shard * 8, shard * 8 + 8)]
ACCEPTED = (0, 1, 2, 3, 4, 5, 6, 7, 9, 16, 17, 23, 48, 50, 51, 54, 55)  # shard 1 nearly, shard 4 wholly left out


def make(url: str) -> str:
    layout = Layout.begin(url, CorpusConfig(samples_per_shard=8).identity(FakeSampler()))
    layout.grow(7)
    for shard in SHARDS:
        write_shard(layout, shard, compute(FakeSampler(), shard * 8, 8))
    storage.put(layout.place(layout.key("image", 3)), b"never committed")
    return url


@pytest.fixture
def url(place: str) -> str:
    return make(place)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One corpus for the tests that change nothing and are of no store in particular."""
    return make(str(tmp_path_factory.mktemp("reader") / "corpus"))


def index_of(images: np.ndarray) -> list[int]:
    """Which sample each image is."""
    return [int(np.flatnonzero((image == IMAGES).all(axis=(1, 2, 3)))[0]) for image in images]


def test_committed_shards_alone_are_read(url: str) -> None:
    reader = CorpusReader(url)
    assert reader.shards == SHARDS
    assert reader.num_samples == 40
    assert reader.manifest is None
    images, soft = reader.read_shard(4)
    expected = compute(FakeSampler(), 32, 8)
    assert np.array_equal(images, expected["image"])
    assert np.array_equal(soft, expected["soft_label"])
    for shard in (3, 5, 99):
        with pytest.raises(IntegrityError, match=f"shard {shard} is not committed"):
            reader.read_shard(shard)
    partial = reader.digest
    assert manifest.finalise(Layout.open(url))["digest"] == partial == CorpusReader(url).digest


def test_one_altered_byte_is_refused(url: str) -> None:
    layout = Layout.open(url)
    key = layout.place(layout.key("soft_label", 2))
    data = bytearray(storage.read_bytes(key))
    data[len(data) // 2] ^= 1
    storage.put(key, bytes(data))
    reader = CorpusReader(url)
    reader.read_shard(1)
    with pytest.raises(IntegrityError, match="shard 2 are not those of its commit record"):
        reader.read_shard(2)
    with pytest.raises(IntegrityError, match="shard 2"):
        list(islice(reader.batches(8, seed=0), 5))
    storage.delete(key)
    with pytest.raises(IntegrityError, match="committed but gone"):
        reader.read_shard(2)


def test_a_byte_altered_after_the_first_reading_is_refused(url: str) -> None:
    layout, reader = Layout.open(url), CorpusReader(url)
    reader.read_shard(2)
    reader.read_shard(2)
    key = layout.place(layout.key("soft_label", 2))
    data = bytearray(storage.read_bytes(key))
    before = None if storage.is_remote(key) else os.stat(key)
    data[-1] ^= 1  # of the index: no sample's checksum covers it
    storage.put(key, bytes(data))
    if before:  # as if nobody had written
        os.utime(key, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(IntegrityError, match="shard 2 are not those of its commit record"):
        reader.read_shard(2)


def test_an_epoch_has_every_sample_once_in_shuffled_order(url: str) -> None:
    reader = CorpusReader(url)
    batches = list(islice(reader.batches(10, seed=5, shuffle_shards=2), 8))
    order = [index_of(images) for images, _ in batches]
    first, second = list(chain(*order[:4])), list(chain(*order[4:]))
    assert sorted(first) == sorted(second) == EVERYTHING
    assert first != second
    assert len({i // 8 for i in order[0]}) == 2  # mixed across the shards in memory
    assert all(np.array_equal(labels, SOFT[index_of(images)]) for images, labels in batches)


def test_the_stream_goes_on_anywhere_and_depends_on_the_seed(url: str) -> None:
    reader = CorpusReader(url)
    whole = [index_of(images) for images, _ in islice(reader.batches(6, 1, shuffle_shards=2), 20)]
    for start in (1, 2, 3, 7, 13, 17):
        rest = islice(CorpusReader(url).batches(6, 1, start_batch=start, shuffle_shards=2), 20 - start)
        assert [index_of(images) for images, _ in rest] == whole[start:]
    assert [index_of(images) for images, _ in islice(reader.batches(6, 2, shuffle_shards=2), 20)] != whole


def test_samples_of_one_shard_come_in_another_order_every_epoch_and_for_every_seed(local: str) -> None:
    reader = CorpusReader(local, accept=range(8))
    orders = [index_of(images) for seed in (0, 1) for images, _ in islice(reader.batches(8, seed), 3)]
    assert all(sorted(order) == list(range(8)) for order in orders)
    assert len({tuple(order) for order in orders}) == 6


def test_a_batch_may_span_windows_and_epochs(url: str) -> None:
    images, soft = next(CorpusReader(url).batches(100, seed=0, shuffle_shards=2))
    assert images.shape == (100, 1, 8, 8)
    assert soft.shape == (100, 5, 8, 8)
    assert sorted(np.bincount(index_of(images), minlength=56).tolist())[-40:] == [2] * 20 + [3] * 20


@pytest.mark.parametrize("accept", [None, ACCEPTED], ids=["all", "accepted"])
@pytest.mark.parametrize("world", [2, 3, 7])
def test_ranks_share_an_epoch_equally_and_without_overlap(
    local: str, world: int, accept: tuple[int, ...] | None
) -> None:
    reader = CorpusReader(local, accept=accept)
    share = reader.num_accepted // world
    ranks = [list(islice(reader.batches(share, 3, 0, 2, rank=rank, world=world), 3)) for rank in range(world)]
    epochs = [[i for rank in ranks for i in index_of(rank[epoch][0])] for epoch in range(3)]
    everything = set(ACCEPTED if accept else EVERYTHING)
    for epoch in epochs:
        assert len(epoch) == len(set(epoch)) == share * world
        assert set(epoch) <= everything
    assert len({tuple(epoch) for epoch in epochs}) == 3
    with pytest.raises(DataError, match=f"{reader.num_accepted} committed and accepted samples for 99 readers"):
        reader.batches(8, 3, rank=0, world=99)


def test_accepted_samples_alone_come_and_the_stream_goes_on_anywhere(local: str, tmp_path: Path) -> None:
    reader = CorpusReader(local, accept=ACCEPTED)
    assert (reader.num_accepted, reader.num_samples) == (len(ACCEPTED), 40)
    # Batches of 5 of 17 samples: neither windows nor epochs end with a batch.
    whole = [index_of(images) for images, _ in islice(reader.batches(5, 1, shuffle_shards=1), 17)]
    for epoch in range(5):
        assert sorted(chain(*whole))[epoch::5] == sorted(ACCEPTED)
    for document in ({"indices": list(ACCEPTED), "identity_digest": Layout.open(local).digest}, list(ACCEPTED)[::-1]):
        storage.put_json(f"{tmp_path}/accept.json", document)
        for start in (1, 2, 3, 6, 11):
            other = CorpusReader(local, accept=f"{tmp_path}/accept.json")
            rest = list(islice(other.batches(5, 1, start_batch=start, shuffle_shards=1), 17 - start))
            assert [index_of(images) for images, _ in rest] == whole[start:]
            assert all(np.array_equal(soft, SOFT[index_of(images)]) for images, soft in rest)


def test_an_accept_list_that_does_not_fit_is_refused(local: str, tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match=r"2 indices that are not committed:\n  - sample 25\n  - sample 900"):
        CorpusReader(local, accept=[1, 25, 900])
    with pytest.raises(IntegrityError, match="sample -1"):
        CorpusReader(local, accept=[-1])
    with pytest.raises(DataError, match=r"1 indices occur more than once, e\.g\. \[3\]"):
        CorpusReader(local, accept=[3, 1, 3])
    with pytest.raises(DataError, match="expected a list of sample indices"):
        CorpusReader(local, accept=[0.5])  # type: ignore[list-item]
    where = f"{tmp_path}/accept.json"
    storage.put_json(where, {"kept": [1]})
    with pytest.raises(DataError, match="no entry 'indices'"):
        CorpusReader(local, accept=where)
    storage.put_json(where, {"indices": [1], "identity_digest": "of another"})
    with pytest.raises(IntegrityError, match="made for another corpus"):
        CorpusReader(local, accept=where)
    with pytest.raises(DataError, match="0 committed and accepted samples"):
        CorpusReader(local, accept=[]).batches(1, 0)


def test_batches_are_the_callers_own(local: str) -> None:
    batches = CorpusReader(local).batches(6, 0, shuffle_shards=2)
    first = next(batches)
    before = first[0].copy(), first[1].copy()
    list(islice(batches, 30))
    assert np.array_equal(first[0], before[0])
    assert np.array_equal(first[1], before[1])


def test_samples_by_index(url: str) -> None:
    images, soft = CorpusReader(url).sample([50, 3, 33, 3])
    assert index_of(images) == [50, 3, 33, 3]
    assert soft.shape == (4, 5, 8, 8)
    with pytest.raises(IntegrityError, match="shard 3 is not committed"):
        CorpusReader(url).sample([25])
