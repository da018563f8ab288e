"""A quote holds what it is told from, states its range, and is held against the outcome."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from fake_pairs import FakeSampler

from dakter.corpus import manifest, quote
from dakter.corpus.budget import BudgetConfig
from dakter.corpus.commit import write_shard
from dakter.corpus.layout import CorpusConfig, Layout
from dakter.corpus.shard import compute
from dakter.errors import DataError


def record(seconds: float, size: int) -> dict[str, Any]:
    return {"facts": {"worker_s": seconds}, "objects": {name: {"bytes": size // 2} for name in ("image", "soft_label")}}


@pytest.fixture
def layout(tmp_path: Any) -> Layout:
    return Layout.begin(str(tmp_path / "corpus"), CorpusConfig(samples_per_shard=8).identity(FakeSampler()))


def tell(layout: Layout, made: list[dict[str, Any]], shards: int, **budget: Any) -> dict[str, Any]:
    return quote.estimate(layout, made, shards=shards, workers=2, gpus=1.0, budget=BudgetConfig(**budget))


def test_equal_shards_leave_no_range(layout: Layout) -> None:
    told = tell(layout, [record(36.0, 1000)] * 4, 100, price_per_hour=2.0, price_per_gb_month=0.02)
    assert told["num_samples"] == 800
    assert told["worker_hours"] == pytest.approx({"low": 1.0, "expected": 1.0, "high": 1.0})
    assert told["gpu_hours"]["expected"] == pytest.approx(1.0)
    assert told["hours"]["expected"] == pytest.approx(0.5), "two workers"
    assert told["samples_per_second"]["expected"] == pytest.approx(2 * 8 / 36)
    assert told["gigabytes"]["expected"] == pytest.approx(1e-4)
    assert told["num_objects"] == 300
    assert told["money"]["workers"]["expected"] == pytest.approx(2.0)
    assert told["money"]["storage_per_month"]["expected"] == pytest.approx(2e-6)


def test_uneven_shards_widen_the_range_and_more_of_them_narrow_it(layout: Layout) -> None:
    few, many = ([record(s, 1000) for s in (30.0, 40.0) * n] for n in (2, 20))
    one, two = (tell(layout, made, 1000)["worker_hours"] for made in (few, many))
    assert one["low"] < two["low"] < two["expected"] < two["high"] < one["high"]
    whole = tell(layout, many, 40)["worker_hours"]
    assert whole["low"] == whole["expected"] == whole["high"], "nothing is left to foretell"


def test_without_a_shard_there_is_no_quote(layout: Layout) -> None:
    with pytest.raises(DataError, match="nothing can be quoted"):
        tell(layout, [], 10)


def test_the_outcome_is_held_against_the_quote(layout: Layout) -> None:
    layout.grow(2)
    for shard, seconds in ((0, 10.0), (1, 20.0)):
        write_shard(layout, shard, compute(FakeSampler(), shard * 8, 8), functools.partial(dict, worker_s=seconds))
    whole = manifest.finalise(layout)
    assert quote.compare(layout, whole) is None, "none was told"
    told = tell(layout, manifest.records(layout, [0]), 2)
    quote.put(layout, told)
    compared = quote.compare(layout, whole)
    assert compared is not None
    assert compared["worker_hours"]["actual"] == pytest.approx(30 / 3600)
    assert compared["worker_hours"]["within"] is False, "one shard tells a factor of two at most"
    assert compared["gigabytes"]["within"] is True
    quote.put(layout, {**told, "num_shards": 3})
    assert quote.compare(layout, whole) is None, "a quote for another size is no quote for this one"
