"""A sample drawn again proves the corpus, or shows that it is not what its model draws."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fake_pairs import FakeSampler

from dakter.corpus.commit import write_shard
from dakter.corpus.layout import CorpusConfig, Layout
from dakter.corpus.regenerate import regenerate
from dakter.corpus.shard import compute
from dakter.errors import ConfigError, ConflictError, IntegrityError

FACTS = {"device": "cpu", "versions": {"torch": "1"}}


@pytest.fixture
def layout(tmp_path: Any) -> Layout:
    layout = Layout.begin(str(tmp_path / "corpus"), CorpusConfig(samples_per_shard=8).identity(FakeSampler()))
    layout.grow(3)
    for shard in (0, 2):
        write_shard(layout, shard, compute(FakeSampler(), shard * 8, 8), lambda: FACTS)
    return layout


class Other(FakeSampler):
    """Says that it is the same, and draws something else from index 20 on."""

    def __init__(self, by: int):
        super().__init__()
        self._by = by

    def __call__(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        images, soft = super().__call__(indices)
        return (images + self._by if indices[0] >= 20 else images).astype(np.uint8), soft


def test_the_same_bytes_come_again(layout: Layout) -> None:
    found = regenerate(layout, FakeSampler(), 18, FACTS)
    assert found["equal"]
    assert found["comparable_bits"]
    assert (found["shard"], found["micro_batch"]) == (2, [16, 19])


def test_one_level_off_is_refused_where_bits_are_comparable_and_allowed_elsewhere(layout: Layout) -> None:
    assert regenerate(layout, Other(1), 18, FACTS)["equal"], "the difference begins behind this micro-batch"
    with pytest.raises(IntegrityError, match="equal bytes are expected"):
        regenerate(layout, Other(1), 20, FACTS)
    found = regenerate(layout, Other(1), 20, {**FACTS, "device": "cuda"})
    assert (found["equal"], found["comparable_bits"], found["within_tolerance"]) == (False, False, True)
    assert found["image_mean_abs"] == 1.0
    with pytest.raises(IntegrityError, match="not what this model draws"):
        regenerate(layout, Other(3), 20, {**FACTS, "device": "cuda"})


def test_what_cannot_be_compared_is_named(layout: Layout) -> None:
    with pytest.raises(ConfigError, match=r"sample is 24; expected 0 to 23"):
        regenerate(layout, FakeSampler(), 24, FACTS)
    with pytest.raises(IntegrityError, match="shard 1 is not committed"):
        regenerate(layout, FakeSampler(), 8, FACTS)
    other = FakeSampler()
    other.identity = {**other.identity, "model_digest": "another"}
    with pytest.raises(ConflictError, match="model_digest: stands 'fake', asked for 'another'"):
        regenerate(layout, other, 0, FACTS)
