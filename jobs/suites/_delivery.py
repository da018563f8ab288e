"""Delivery on the demo network: samples committed by N actors beside N times one process that samples in memory."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np
import torch

from dakter import storage
from dakter.corpus.layout import ARRAYS, Layout
from dakter.corpus.objects import Objects
from dakter.diffusion.network import JointUNet
from dakter.diffusion.pipeline import JointDiffusionPipeline, save_model
from dakter.schema import OSD
from jobs import generate, train
from jobs._cli import Stop, resolve
from jobs._model_sampler import ModelSampler
from jobs.suites import _apart
from jobs.suites._generate import generate_settings
from jobs.suites._knee import put_each
from jobs.suites._watch import clock

log = logging.getLogger("dakter.jobs.benchmark")


def demo_model(url: str) -> None:
    """The demo's network with the weights it starts from: speed does not depend on them."""
    settings = resolve(train.TrainSettings, preset="demo")
    torch.manual_seed(0)
    pipeline = JointDiffusionPipeline.build(
        JointUNet.build(settings.network, bands=1, num_classes=len(OSD)),
        settings.diffusion,
        b=0.5,
        dihedral=False,
        size_px=64,
        class_table=OSD,
        bands=("vv",),
        value_range=(-30.0, 0.0),
    )
    save_model(pipeline, url, {"licence": "none: untrained"})


def _settings(out: str, model: str, num_samples: int, actors: int, samples_per_shard: int) -> generate.GenerateSettings:
    more = {"paths.model": model}
    return generate_settings(out, num_samples, samples_per_shard, actors, preset="demo", **more)


def sample_alone(model: str, seconds: float, number: int = 0, url: str | None = None) -> dict[str, float]:
    """Draw micro-batches for so long, one thread; the first one warms up and is not counted.

    Args:
        number: of this process, for the names of its objects.
        url: where to put each sample as an object of its own (``put_each``); None: nothing is kept.

    Returns:
        ``begin`` and ``end`` (time.time), and ``per_second``.
    """
    settings = _settings("unused", model, 16, 1, 16)
    sampler = ModelSampler(model, settings.sampler, settings.soft_label, 0, 1, "cpu")
    size = sampler.micro_batch
    sampler(np.arange(size))
    objects = Objects(storage.join(url, f"process-{number}")) if url else None
    begin, done = time.time(), 0
    while time.time() - begin < seconds:
        pairs = sampler(np.arange(done, done + size))
        if objects:
            put_each(objects, done, dict(zip(ARRAYS, pairs, strict=True)))
        done += size
    end = time.time()
    return {"begin": begin, "end": end, "per_second": done / (end - begin)}


def bare_rate(model: str, count: int, seconds: float, url: str | None = None) -> float:
    """Mean samples per second of one of ``count`` processes that sample at the same time, as ``sample_alone``."""
    started = [_apart.start(sample_alone, model, seconds, number, url) for number in range(count)]
    found = [_apart.result(process) for process in started]
    overlap_s = min(row["end"] for row in found) - max(row["begin"] for row in found)
    if overlap_s < 0.6 * seconds:
        log.warning("bare sampling: the processes overlapped for %.1f of %.1f s only", overlap_s, seconds)
    return float(np.mean([row["per_second"] for row in found]))


def deliver(
    places: Sequence[tuple[str, str]],
    model: str,
    *,
    actors: int,
    num_samples: int,
    samples_per_shard: int,
    repeats: int,
    bare_s: float,
    stop: Stop,
) -> dict[str, Any]:
    """Samples per second committed by ``jobs/generate.py``, at each of ``places`` (name, URL), beside bare sampling.

    The clock runs from the moment the first sample was begun to the last commit (``_watch.clock``): encoding, hashing,
    storing, committing and an actor that comes late or ends early are in it; Ray's start, the model's loading and the
    manifest are not (``seconds_outside_the_clock``). Bare sampling is measured in one process alone, and in ``actors``
    processes at a time beside the same Ray session: on shared cores the second is what N actors can reach. That is done
    before and after each place, since the machine's pace drifts by some percent within minutes, and the mean of the two
    is what the place is held against. As a contrast the same processes put each sample as an object of its own. The S3
    server of the suite works on these cores too.
    """
    alone: list[float] = []
    beside: dict[str, list[float]] = {name: [] for name, _ in places}
    rates: dict[str, list[float]] = {name: [] for name, _ in places}
    contrast: dict[str, list[float]] = {name: [] for name, _ in places}
    outside: list[float] = []
    for repeat in range(repeats):
        alone.append(bare_rate(model, 1, bare_s))
        for name, url in places:
            before = bare_rate(model, actors, bare_s)
            settings = _settings(storage.join(url, f"delivery-{repeat}"), model, num_samples, actors, samples_per_shard)
            corpus = settings.place("corpus")
            begin = time.monotonic()
            generate.run(settings, stop)
            whole_s = time.monotonic() - begin
            layout = Layout.open(corpus)
            began, commits = clock(layout)
            clock_s = commits[-1] - began
            rates[name].append(len(layout.committed()) * samples_per_shard / clock_s)
            outside.append(whole_s - clock_s)
            storage.remove_folder(corpus)
            after = bare_rate(model, actors, bare_s)
            beside[name].append((before + after) / 2)
            place = storage.join(url, f"contrast-{repeat}")
            contrast[name].append(actors * bare_rate(model, actors, bare_s, place))
            storage.remove_folder(place)
    return {
        "actors": actors,
        "num_samples": num_samples,
        "samples_per_shard": samples_per_shard,
        "bare_per_second_one_alone": round(median(alone), 3),
        "bare_per_second_one_of_several": {name: round(median(rate), 3) for name, rate in beside.items()},
        "committed_per_second": {name: round(median(rate), 3) for name, rate in rates.items()},
        "float32_object_a_sample_per_second": {name: round(median(rate), 3) for name, rate in contrast.items()},
        "share_of_n_times_bare_one_of_several": {name: _share(rates[name], beside[name], actors) for name in rates},
        "share_of_n_times_bare_one_alone": {name: _share(rates[name], alone, actors) for name in rates},
        "seconds_outside_the_clock": round(median(outside), 2),
    }


def _share(rate: list[float], bare: list[float], actors: int) -> float:
    return round(median(ours / (actors * one) for ours, one in zip(rate, bare, strict=True)), 4)
