"""Spending caps of a corpus: worker hours, money and stored bytes, over all runs that made it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from pydantic import model_validator

from dakter.config import Config, setting


class BudgetConfig(Config):
    """What the corpus may cost, and prices to tell it by. A worker is one sampling actor with its CPUs and GPUs."""

    max_hours: float | None = setting(
        None, "worker hours for one corpus in all, earlier runs included; null: no cap", unit="h", gt=0
    )
    max_cost: float | None = setting(
        None, "money for worker hours of one corpus in all, by price_per_hour; null: no cap", unit="currency", gt=0
    )
    max_bytes: int | None = setting(None, "stored bytes of one corpus; null: no cap", unit="bytes", ge=1)
    price_per_hour: float | None = setting(None, "price of one worker for an hour", unit="currency/h", ge=0)
    price_per_gb_month: float | None = setting(
        None, "price of storage, for the quote", unit="currency/(10^9 bytes month)", ge=0
    )
    price_per_1000_puts: float | None = setting(None, "price of write requests, for the quote", unit="currency", ge=0)
    currency: str = setting("USD", "name of the currency of all prices", min_length=1, max_length=8)

    @model_validator(mode="after")
    def _priced(self) -> Self:
        if self.max_cost is not None and not self.price_per_hour:
            raise ValueError("a price_per_hour above 0 beside max_cost: without it no cost can be told")
        return self

    def cost(self, worker_s: float) -> float | None:
        """Money for worker seconds; None without a price."""
        return None if self.price_per_hour is None else worker_s / 3600 * self.price_per_hour

    @property
    def cap_s(self) -> tuple[float, str] | None:
        """The tighter cap on worker seconds and the setting that it comes from."""
        caps = []
        if self.max_hours is not None:
            caps.append((self.max_hours * 3600, "max_hours"))
        if self.max_cost is not None:
            assert self.price_per_hour
            caps.append((self.max_cost / self.price_per_hour * 3600, "max_cost"))
        return min(caps, default=None)


@dataclass
class Forecast:
    """What one shard costs, learned from those that are done: the greatest so far, so that a cap holds."""

    shard_s: float = 0.0
    shard_bytes: int = 0

    def learn(self, seconds: float, size: int) -> None:
        self.shard_s, self.shard_bytes = max(self.shard_s, seconds), max(self.shard_bytes, size)


def hindrance(
    config: BudgetConfig, *, spent_s: float, stored: int, workers: int, in_hand: int, forecast: Forecast
) -> tuple[str, bool] | None:
    """Which cap forbids to begin another shard, in words; None if none does.

    Shards in hand are let finish where they fit: a new one is begun only if it, and all in hand, are expected to end
    within the caps.

    Args:
        spent_s: worker seconds of all runs so far.
        stored: bytes of committed shards.
        workers: actors that are held while a shard is made.
        in_hand: shards begun and not ended.

    Returns:
        (text, whether a cap is already passed, so that shards in hand are given up too).
    """
    cap = config.cap_s
    if cap is not None and spent_s + workers * forecast.shard_s >= cap[0]:
        spent = f"{spent_s / 3600:.3g} worker hours are spent"
        money = config.cost(spent_s)
        if money is not None:
            spent += f" ({money:.3g} {config.currency})"
        return f"budget.{cap[1]} is {getattr(config, cap[1]):g}: {spent}", spent_s >= cap[0]
    if config.max_bytes is not None and stored + (in_hand + 1) * max(1, forecast.shard_bytes) > config.max_bytes:
        return (
            f"budget.max_bytes is {config.max_bytes}: {stored} bytes are stored, a shard takes up to "
            f"{forecast.shard_bytes}",
            False,
        )
    return None
