"""Delivery on the demo network: samples committed by N actors beside N times one process that samples in memory."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np
import torch

from dakter import storage
from dakter.corpus.layout import Layout
from dakter.corpus.manifest import records
from dakter.diffusion.network import JointUNet
from dakter.diffusion.pipeline import JointDiffusionPipeline, save_model
from dakter.schema import OSD
from jobs import generate, train
from jobs._cli import Stop, resolve
from jobs._model_sampler import ModelSampler

log = logging.getLogger("dakter.jobs.benchmark")


def demo_model(url: str) -> None:
    """The demo's network with the weights it starts from: speed does not depend on them."""
    settings = resolve(train.TrainSettings, preset="demo")
    torch.manual_seed(0)
    pipeline = JointDiffusionPipeline.build(
        JointUNet.build(settings.network, bands=1, num_classes=len(OSD)),
        settings.diffusion,
        b=0.5,
        size_px=64,
        class_table=OSD,
        bands=("vv",),
        value_range=(-30.0, 0.0),
    )
    save_model(pipeline, url, {"licence": "none: untrained"})


def _settings(out: str, model: str, num_samples: int, actors: int, samples_per_shard: int) -> generate.GenerateSettings:
    return resolve(
        generate.GenerateSettings,
        preset="demo",
        overrides={
            "out": out,
            "log_level": "WARNING",
            "paths.model": model,
            "corpus.num_samples": num_samples,
            "corpus.samples_per_shard": samples_per_shard,
            "ray.generate_workers": actors,
            "ray.generate_cpus": 1,
        },
    )


def sample_in_memory(model: str, seconds: float) -> dict[str, float]:
    """Draw micro-batches for so long, one thread, nothing kept; the first one warms up and is not counted.

    Returns:
        ``begin`` and ``end`` (time.time), ``samples`` and ``per_second``.
    """
    settings = _settings("unused", model, 16, 1, 16)
    sampler = ModelSampler(model, settings.sampler, settings.soft_label, 0, 1, "cpu")
    size = sampler.micro_batch
    sampler(np.arange(size))
    begin, done = time.time(), 0
    while time.time() - begin < seconds:
        sampler(np.arange(done, done + size))
        done += size
    end = time.time()
    return {"begin": begin, "end": end, "samples": float(done), "per_second": done / (end - begin)}


def bare_rates(model: str, actors: int, seconds: float) -> tuple[float, float]:
    """Samples per second of one process alone, and of one while ``actors - 1`` others do the same beside it (mean)."""
    return _together(model, 1, seconds), _together(model, actors, seconds)


def _together(model: str, count: int, seconds: float) -> float:
    code = (
        "import json, sys; from jobs.suites._delivery import sample_in_memory; "
        "print(json.dumps(sample_in_memory(sys.argv[1], float(sys.argv[2]))))"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code, model, str(seconds)], stdout=subprocess.PIPE, text=True)
        for _ in range(count)
    ]
    import json

    found = [json.loads(process.communicate()[0].splitlines()[-1]) for process in started]
    overlap_s = min(row["end"] for row in found) - max(row["begin"] for row in found)
    if overlap_s < 0.6 * seconds:
        log.warning("bare sampling: processes overlapped for %.1f of %.1f s only", overlap_s, seconds)
    return float(np.mean([row["per_second"] for row in found]))


def committed_rate(layout: Layout) -> tuple[float, float]:
    """Samples per second of a finished run without its start, and the seconds from the first sample on.

    The clock runs from the moment the first shard was begun (its commit less the time that it took) to the last
    commit: sampling, encoding, hashing, storing and committing of every shard are in it, Ray's start is not.
    """
    facts = [record["facts"] for record in records(layout, layout.committed())]
    ends = sorted(row["committed_at"] for row in facts)
    begin = min(row["committed_at"] - row["sampling_s"] for row in facts)
    seconds = ends[-1] - begin
    return len(facts) * layout.samples_per_shard / seconds, seconds


def deliver(
    places: Sequence[tuple[str, str]],
    model: str,
    *,
    actors: int,
    num_samples: int,
    samples_per_shard: int,
    repeats: int,
    stop: Stop,
) -> dict[str, Any]:
    """Samples per second committed, at each of ``places`` (name, URL), beside bare sampling before and after."""
    found: dict[str, Any] = {"actors": actors, "num_samples": num_samples, "samples_per_shard": samples_per_shard}
    alone: list[float] = []
    beside: list[float] = []
    rates: dict[str, list[float]] = {name: [] for name, _ in places}
    starts: list[float] = []
    window_s = max(5.0, num_samples / actors / 20)
    for repeat in range(repeats):
        one, several = bare_rates(model, actors, window_s)
        alone.append(one)
        beside.append(several)
        for name, url in places:
            out = storage.join(url, f"delivery-{repeat}")
            settings = _settings(out, model, num_samples, actors, samples_per_shard)
            begin = time.monotonic()
            generate.run(settings, stop)
            whole_s = time.monotonic() - begin
            rate, seconds = committed_rate(Layout.open(settings.place("corpus")))
            rates[name].append(rate)
            starts.append(whole_s - seconds)
            storage.remove_folder(settings.place("corpus"))
    found["bare_per_second_one_alone"] = round(median(alone), 3)
    found["bare_per_second_one_beside_others"] = round(median(beside), 3)
    found["seconds_outside_the_clock"] = round(median(starts), 2)
    found["committed_per_second"] = {name: round(median(rate), 3) for name, rate in rates.items()}
    for basis, bare in (("beside_others", beside), ("alone", alone)):
        found[f"share_of_n_times_bare_{basis}"] = {
            name: round(median(a / (actors * b) for a, b in zip(rate, bare, strict=True)), 4)
            for name, rate in rates.items()
        }
    return found


