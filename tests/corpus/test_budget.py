"""Caps hold before they are passed, and say what they are."""

from __future__ import annotations

import pytest

from dakter import config
from dakter.corpus.budget import BudgetConfig, Forecast, hindrance
from dakter.errors import ConfigError


def ask(budget: BudgetConfig, **state: float) -> tuple[str, bool] | None:
    forecast = Forecast(shard_s=state.get("shard_s", 0.0), shard_bytes=int(state.get("shard_bytes", 0)))
    return hindrance(
        budget,
        spent_s=state.get("spent_s", 0.0),
        stored=int(state.get("stored", 0)),
        workers=2,
        in_hand=int(state.get("in_hand", 0)),
        forecast=forecast,
    )


def test_without_caps_nothing_hinders() -> None:
    assert ask(BudgetConfig(price_per_hour=3.0), spent_s=1e9, stored=10**15) is None


def test_hours_stop_new_shards_while_those_in_hand_still_fit() -> None:
    budget = BudgetConfig(max_hours=1.0)
    assert ask(budget, spent_s=3000, shard_s=200) is None
    text, passed = ask(budget, spent_s=3300, shard_s=200) or ("", True)
    assert "budget.max_hours is 1: 0.917 worker hours" in text
    assert not passed, "two workers of 200 s each would pass the hour: no new shard, but nothing is given up"
    assert (ask(budget, spent_s=3600) or ("", False))[1] is True


def test_cost_is_hours_by_their_price_and_the_tighter_cap_rules() -> None:
    budget = BudgetConfig(max_hours=10, max_cost=6.0, price_per_hour=3.0)
    assert ask(budget, spent_s=1.9 * 3600) is None
    text, _ = ask(budget, spent_s=2 * 3600) or ("", False)
    assert "budget.max_cost is 6" in text
    assert "(6 USD)" in text


def test_bytes_are_never_passed_by_shards_in_hand() -> None:
    budget = BudgetConfig(max_bytes=1000)
    assert ask(budget, stored=700, shard_bytes=100, in_hand=2) is None
    text, passed = ask(budget, stored=701, shard_bytes=100, in_hand=2) or ("", True)
    assert "701 bytes are stored, a shard takes up to 100" in text
    assert not passed


def test_a_cost_without_a_price_is_refused() -> None:
    with pytest.raises(ConfigError, match="price_per_hour above 0 beside max_cost"):
        config.load(BudgetConfig, {"max_cost": 5.0})
