"""Settings of ``jobs/generate.py`` as the suites run it: few words in the log, one CPU an actor."""

from __future__ import annotations

from typing import Any

from jobs import generate
from jobs._cli import resolve


def generate_settings(
    out: str, num_samples: int, samples_per_shard: int, actors: int, *, preset: str | None = None, **more: Any
) -> generate.GenerateSettings:
    """``more``: further overrides, by table and setting."""
    overrides = {
        "out": out,
        "log_level": "WARNING",
        "corpus.num_samples": num_samples,
        "corpus.samples_per_shard": samples_per_shard,
        "ray.generate_workers": actors,
        "ray.generate_cpus": 1,
        **more,
    }
    return resolve(generate.GenerateSettings, preset=preset, overrides=overrides)
