"""The jobs' own figures for Prometheus, through Ray's metrics endpoints: nothing of ours listens.

A process that has joined a Ray cluster hands them to its node's agent, which exports them as ``ray_<name>`` with the
labels ``run`` and ``stage``; elsewhere nothing happens. infra/grafana/dakter.json shows them.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from dakter.progress import Progress

_COMMON = ("run", "stage")


@dataclass(frozen=True)
class Figure:
    """One metric: its kind, what it tells, and its labels beside run and stage."""

    kind: Literal["Gauge", "Counter"]
    meaning: str
    labels: tuple[str, ...] = ()


FIGURES = {
    "dakter_done": Figure("Gauge", "items of a piece of work that are finished", ("what", "unit")),
    "dakter_planned": Figure("Gauge", "items of a piece of work in all", ("what", "unit")),
    "dakter_items_per_second": Figure("Gauge", "items a second, mean since this start", ("what", "unit")),
    "dakter_shards": Figure("Counter", "shards that ended: written, stood, failed or stopped", ("outcome",)),
    "dakter_train_loss": Figure("Gauge", "loss of the joint model, mean since the record before"),
    "dakter_train_samples_per_second": Figure("Gauge", "images a second of training, over all workers"),
    "dakter_train_data_wait_ratio": Figure("Gauge", "share of the time in which training waits for its batch, 0 to 1"),
}

# Entries of a training record -> metrics.
_TRAINING = {
    "loss": "dakter_train_loss",
    "samples_per_second": "dakter_train_samples_per_second",
    "data_wait_share": "dakter_train_data_wait_ratio",
}


def exported(name: str) -> str:
    """What Prometheus calls a metric."""
    return f"ray_{name}_total" if FIGURES[name].kind == "Counter" else f"ray_{name}"


def progress(seen: Progress, labels: Mapping[str, str]) -> None:
    """How far a piece of work is."""
    named = {**labels, "what": seen.what, "unit": seen.unit}
    _record("dakter_done", seen.done, named)
    _record("dakter_planned", seen.total, named)
    _record("dakter_items_per_second", seen.rate, named)


def training(record: Mapping[str, float], labels: Mapping[str, str]) -> None:
    """A record of ``dakter.diffusion.fit``."""
    for key, name in _TRAINING.items():
        _record(name, record[key], labels)


def shard(outcome: str, labels: Mapping[str, str]) -> None:
    """One more shard has ended."""
    _record("dakter_shards", 1, {**labels, "outcome": outcome})


def _record(name: str, value: float, labels: Mapping[str, str]) -> None:
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return
    metric = _metric(name)
    (metric.inc if FIGURES[name].kind == "Counter" else metric.set)(value, tags=dict(labels))


@cache
def _metric(name: str) -> Any:
    from ray.util import metrics

    figure = FIGURES[name]
    return getattr(metrics, figure.kind)(name, description=figure.meaning, tag_keys=(*_COMMON, *figure.labels))
