"""What a corpus will take, told from shards that are already made, and afterwards held against what it took."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from dakter import storage
from dakter.corpus.budget import BudgetConfig
from dakter.corpus.layout import ARRAYS, Layout
from dakter.corpus.manifest import records
from dakter.errors import DataError

# Of a quote's range: a figure for the whole lies in it in nine of ten cases, if later shards are like those measured.
LEVEL = 0.9
_KEY = "quote.json"
_OBJECTS_PER_SHARD = len(ARRAYS) + 1  # and its commit record
_PUTS_PER_SHARD = _OBJECTS_PER_SHARD + 1  # and the sign that it is in hand (a removal is free)


def estimate(
    layout: Layout, made: Sequence[Mapping[str, Any]], *, shards: int, workers: int, gpus: float, budget: BudgetConfig
) -> dict[str, Any]:
    """The whole of ``shards`` shards, from the commit records of a few.

    Every figure is ``{"low", "expected", "high"}``: a prediction interval by Student's t for the sum over the shards
    that are still to be made, plus what the made ones took. It covers the spread between shards, not slower machines,
    lost ones, or the time to start them.

    Args:
        made: commit records, at least one.
        workers, gpus: sampling actors, and GPUs of one.

    Raises:
        DataError: no shard is made yet.
    """
    if not made:
        raise DataError(f"{layout.url}: no shard is committed, so nothing can be quoted; make a few first")
    seconds = [worker_s(record) for record in made]
    sizes = [float(stored_bytes(record)) for record in made]
    work_s, size_bytes = _sum(seconds, shards), _sum(sizes, shards)
    num_samples = layout.samples_before(shards)
    money: dict[str, Any] = {"currency": budget.currency}
    if budget.price_per_hour is not None:
        money["workers"] = _scaled(work_s, budget.price_per_hour / 3600)
    if budget.price_per_gb_month is not None:
        money["storage_per_month"] = _scaled(size_bytes, budget.price_per_gb_month / 1e9)
    if budget.price_per_1000_puts is not None:
        money["requests"] = _scaled(_exactly(shards * _PUTS_PER_SHARD), budget.price_per_1000_puts / 1000)
    rate = workers * num_samples / shards / statistics.fmean(seconds)
    return {
        "num_samples": num_samples,
        "num_shards": shards,
        "measured_shards": len(made),
        "level": LEVEL,
        "workers": workers,
        "samples_per_second": {
            "low": workers * num_samples / work_s["high"] if work_s["high"] else rate,
            "expected": rate,
            "high": workers * num_samples / work_s["low"] if work_s["low"] else rate,
        },
        "hours": _scaled(work_s, 1 / 3600 / workers),
        "worker_hours": _scaled(work_s, 1 / 3600),
        "gpu_hours": _scaled(work_s, gpus / 3600),
        "gigabytes": _scaled(size_bytes, 1e-9),
        "num_objects": shards * _OBJECTS_PER_SHARD,
        "money": money,
    }


def put(layout: Layout, quote: Mapping[str, Any]) -> None:
    """Keep a quote beside the corpus, in place of an earlier one."""
    storage.put_json(layout.place(_KEY), dict(quote))


def compare(layout: Layout, manifest: Mapping[str, Any]) -> dict[str, Any] | None:
    """The quote of a finished corpus beside what it came to; None without a quote for just so many shards.

    Worker hours are the sum over commit records, as in the quote: the time that shards took. What runs were held
    for besides (starts, lost work, waiting) is in ``status``.
    """
    try:
        quote = layout.read_json(_KEY)
    except FileNotFoundError:
        return None
    if quote["num_shards"] != manifest["num_shards"]:
        return None
    found = records(layout, layout.committed())
    actual = {
        "worker_hours": math.fsum(worker_s(record) for record in found) / 3600,
        "gigabytes": manifest["bytes"] / 1e9,
    }
    return {
        name: {**quote[name], "actual": value, "within": bool(quote[name]["low"] <= value <= quote[name]["high"])}
        for name, value in actual.items()
    }


def comparison_lines(compared: Mapping[str, Any] | None) -> list[str]:
    """For people."""
    return [
        f"{name.replace('_', ' ')}: {row['actual']:.3g}; quoted {_range(row)}: "
        + ("within the range" if row["within"] else "outside the range")
        for name, row in (compared or {}).items()
    ]


def stored(layout: Layout) -> int:
    """Bytes of all committed shards."""
    return sum(stored_bytes(record) for record in records(layout, layout.committed()))


def worker_s(record: Mapping[str, Any]) -> float:
    """Seconds that a worker spent on one committed shard; 0 if the record does not tell."""
    return float(record["facts"].get("worker_s", 0.0))


def stored_bytes(record: Mapping[str, Any]) -> int:
    """Bytes of the objects of one committed shard."""
    return sum(int(record["objects"][name]["bytes"]) for name in ARRAYS)


def lines(quote: Mapping[str, Any]) -> list[str]:
    """For people."""
    rate, money = quote["samples_per_second"], quote["money"]
    out = [
        f"{quote['num_samples']} samples in {quote['num_shards']} shards, told from {quote['measured_shards']} of them",
        f"{_range(rate)} samples/s by {quote['workers']} workers: {_range(quote['hours'])} h",
        f"{_range(quote['worker_hours'])} worker hours, {_range(quote['gpu_hours'])} GPU hours",
        f"{_range(quote['gigabytes'])} GB in {quote['num_objects']} objects",
    ]
    texts = {"workers": "for workers", "storage_per_month": "a month for storage", "requests": "for write requests"}
    out += [f"{_range(money[name])} {money['currency']} {text}" for name, text in texts.items() if name in money]
    if len(money) == 1:
        out.append("no prices given: set budget.price_per_hour (and price_per_gb_month) to see money")
    return out


def _sum(values: Sequence[float], total: int) -> dict[str, float]:
    """Sum over ``total`` items of which ``values`` are known: the known ones plus a prediction for the rest."""
    known, number = math.fsum(values), len(values)
    rest = max(0, total - number)
    mean = known / number
    expected = known + rest * mean
    if number < 2 or not rest:  # one value tells no spread: a factor of two either way, until more are measured
        spread = rest * mean / 2 if rest else 0.0
    else:
        from scipy import stats  # 60 MB that a driver need not hold for hours

        t = float(stats.t.ppf(0.5 + LEVEL / 2, number - 1))
        spread = t * statistics.stdev(values) * math.sqrt(rest * rest / number + rest)
    return {"low": max(known, expected - spread), "expected": expected, "high": expected + spread}


def _exactly(value: float) -> dict[str, float]:
    return {"low": float(value), "expected": float(value), "high": float(value)}


def _scaled(figure: Mapping[str, float], factor: float) -> dict[str, float]:
    return {key: value * factor for key, value in figure.items()}


def _range(figure: Mapping[str, float]) -> str:
    low, expected, high = (f"{figure[key]:.3g}" for key in ("low", "expected", "high"))
    return expected if low == high else f"{expected} ({low} to {high})"
