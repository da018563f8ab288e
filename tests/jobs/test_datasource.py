"""A corpus through Ray Data: every committed sample once, checked, one block a shard."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_pairs import FakeSampler

from dakter import storage
from dakter.corpus.commit import write_shard
from dakter.corpus.layout import CorpusConfig, Layout
from dakter.corpus.shard import compute
from dakter.errors import IntegrityError
from jobs._ray import RayConfig, session

IMAGES, SOFT = compute(FakeSampler(), 0, 48).values()
COMMITTED = [i for i in range(48) if i // 8 != 3]


@pytest.fixture(scope="module")
def own_ray() -> Iterator[Any]:
    with session(RayConfig(num_cpus=2)) as ray:
        yield ray


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    layout = Layout.begin(
        str(tmp_path_factory.mktemp("source") / "corpus"), CorpusConfig(samples_per_shard=8).identity(FakeSampler())
    )
    layout.grow(6)
    for shard in (0, 1, 2, 4, 5):
        write_shard(layout, shard, compute(FakeSampler(), shard * 8, 8))
    return layout.url


def test_every_committed_sample_comes_once_one_block_a_shard(own_ray: Any, url: str) -> None:
    from jobs._datasource import CorpusDatasource, read_corpus

    source = CorpusDatasource(url)
    assert len(source.get_read_tasks(99)) == 5
    assert source.estimate_inmemory_data_size() == 40 * (6 * 64 + 8)
    data = read_corpus(url).materialize()
    assert data.num_blocks() == 5
    rows = sorted(data.take_all(), key=lambda row: row["index"])
    assert [row["index"] for row in rows] == COMMITTED
    assert all(np.array_equal(row["image"], IMAGES[row["index"]]) for row in rows)
    assert all(np.array_equal(row["soft_label"], SOFT[row["index"]]) for row in rows)


def test_accepted_samples_alone_and_batches_of_tensors(own_ray: Any, url: str) -> None:
    from jobs._datasource import read_corpus

    batches = list(read_corpus(url, accept=[40, 3, 16, 5]).iter_batches(batch_size=4))
    assert sorted(batches[0]["index"].tolist()) == [3, 5, 16, 40]
    assert batches[0]["image"].dtype == batches[0]["soft_label"].dtype == np.uint8
    assert batches[0]["soft_label"].shape == (4, 5, 8, 8)
    with pytest.raises(IntegrityError, match="sample 24"):
        read_corpus(url, accept=[24])


def test_an_altered_shard_fails_the_dataset(own_ray: Any, url: str, tmp_path: Path) -> None:
    from jobs._datasource import read_corpus

    storage.download_folder(url, tmp_path)
    layout = Layout.open(str(tmp_path))
    where = layout.place(layout.key("image", 2))
    storage.put(where, storage.read_bytes(where)[:-1])
    with pytest.raises(Exception, match="shard 2 are not those of its commit record"):
        read_corpus(str(tmp_path)).materialize()
