"""Readers get committed, checked shards alone, in an order that is a function of its arguments."""

from __future__ import annotations

from itertools import chain, islice

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
IMAGES = compute(FakeSampler(), 0, 56)["image"]


@pytest.fixture
def url(place: str) -> str:
    layout = Layout.begin(place, CorpusConfig(samples_per_shard=8).identity(FakeSampler()))
    layout.grow(7)
    for shard in SHARDS:
        write_shard(layout, shard, compute(FakeSampler(), shard * 8, 8))
    storage.put(layout.place(layout.key("image", 3)), b"never committed")
    return place


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


def test_an_epoch_has_every_sample_once_in_shuffled_order(url: str) -> None:
    reader = CorpusReader(url)
    batches = list(islice(reader.batches(10, seed=5, shuffle_shards=2), 8))
    order = [index_of(images) for images, _ in batches]
    everything = [i for shard in SHARDS for i in range(shard * 8, shard * 8 + 8)]
    first, second = list(chain(*order[:4])), list(chain(*order[4:]))
    assert sorted(first) == sorted(second) == everything
    assert first != second
    assert len({i // 8 for i in order[0]}) == 2  # mixed across the shards in memory
    soft = compute(FakeSampler(), 0, 56)["soft_label"]
    assert all(np.array_equal(labels, soft[index_of(images)]) for images, labels in batches)


def test_the_stream_goes_on_anywhere_and_depends_on_the_seed(url: str) -> None:
    reader = CorpusReader(url)
    whole = [index_of(images) for images, _ in islice(reader.batches(6, 1, shuffle_shards=2), 20)]
    for start in (1, 2, 3, 7, 13, 17):
        rest = islice(CorpusReader(url).batches(6, 1, start_batch=start, shuffle_shards=2), 20 - start)
        assert [index_of(images) for images, _ in rest] == whole[start:]
    assert [index_of(images) for images, _ in islice(reader.batches(6, 2, shuffle_shards=2), 20)] != whole


def test_a_batch_may_span_windows_and_epochs(url: str) -> None:
    images, soft = next(CorpusReader(url).batches(100, seed=0, shuffle_shards=2))
    assert images.shape == (100, 1, 8, 8)
    assert soft.shape == (100, 5, 8, 8)
    assert sorted(np.bincount(index_of(images), minlength=56).tolist())[-40:] == [2] * 20 + [3] * 20


def test_ranks_share_an_epoch_without_overlap(url: str) -> None:
    reader = CorpusReader(url)
    ranks = [islice(reader.batches(8, 3, rank=rank, world=2), 2) for rank in (0, 1)]
    seen = {i for batches in ranks for images, _ in batches for i in index_of(images)}
    assert len(seen) == 32  # two shards each, one sits out
    with pytest.raises(DataError, match="5 committed shards for 6 readers"):
        reader.batches(8, 3, rank=0, world=6)


def test_samples_by_index(url: str) -> None:
    images, soft = CorpusReader(url).sample([50, 3, 33, 3])
    assert index_of(images) == [50, 3, 33, 3]
    assert soft.shape == (4, 5, 8, 8)
    with pytest.raises(IntegrityError, match="shard 3 is not committed"):
        CorpusReader(url).sample([25])
