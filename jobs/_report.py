"""Gathers what the stages of a run left and writes its report."""

from __future__ import annotations

import datetime
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from dakter import storage
from dakter.corpus.reader import CorpusReader
from dakter.data.tiles import Split, TileCorpus
from dakter.diffusion.pipeline import open_model
from dakter.report.build import build
from dakter.report.inputs import ReportInputs
from dakter.report.texture import compare_speckle
from dakter.students.models import predict
from dakter.students.store import load_student
from jobs._cli import JobSettings

log = logging.getLogger("dakter.jobs.report")

_GALLERY = 8  # pictures a gallery
_SPECKLE = 256  # images a set for the speckle statistics


def _spread(count: int, wanted: int) -> list[int]:
    """``wanted`` indices spread evenly over ``range(count)``."""
    return sorted({int(i) for i in np.linspace(0, max(count - 1, 0), min(wanted, count))})


def _pictures(splits: Sequence[Split]) -> tuple[tuple[np.ndarray, np.ndarray], list[str]]:
    chosen = [(split, _spread(len(split.images), _GALLERY // len(splits))) for split in splits]
    images = np.concatenate([split.images[rows] for split, rows in chosen])
    labels = np.concatenate([split.labels[rows] for split, rows in chosen])
    return (images, labels), [split.names[i] for split, rows in chosen for i in rows]


def _predictions(
    sweep_url: str, sweep: dict[str, Any], val: Split
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Val tiles with the probabilities of each arm's best student by val."""
    rows = _spread(len(val.images), _GALLERY)
    probabilities = {}
    for arm, found in sweep["arms"].items():
        best = max(found["students"], key=lambda student: student["val_miou"])
        loaded = load_student(storage.join(sweep_url, best["path"]))
        probabilities[arm] = predict(loaded.model, val.images[rows])
    return val.images[rows], val.labels[rows], probabilities


def write_report(settings: JobSettings, stages: Sequence[str], settings_yaml: str) -> str:
    """Write report.html, then report.json, into the run's report folder; returns the URL of the page."""
    tiles = TileCorpus.open(settings.place("tiles"))
    train, val = tiles.read("train"), tiles.read("val")
    reader = CorpusReader(settings.place("corpus"))
    some_shards = [reader.shards[i] for i in _spread(len(reader.shards), 4)]
    pairs = [reader.read_shard(shard) for shard in some_shards]
    generated, soft = (np.concatenate([pair[part][:_SPECKLE] for pair in pairs])[:_SPECKLE] for part in (0, 1))
    size = reader.samples_per_shard
    indices = np.concatenate([shard * size + np.arange(size)[:_SPECKLE] for shard in some_shards])
    shown = list(range(min(_GALLERY, len(generated))))
    real_gallery, names = _pictures([train, val])
    sweep = storage.read_json(storage.join(settings.place("sweep"), "sweep.json"))
    model = open_model(settings.place("model")).record
    measured = storage.join(settings.place("evaluation"), "latency.json")
    some = _spread(len(train.images), _SPECKLE)
    html, data = build(
        ReportInputs(
            stages={
                name: storage.read_json(where)
                for name in stages
                if storage.exists(where := storage.join(settings.out, "stages", f"{name}.json"))
            },
            tiles_manifest=tiles.manifest.to_json(),
            sweep=sweep,
            evaluation=storage.read_json(storage.join(settings.place("evaluation"), "evaluation.json")),
            latency=storage.read_json(measured) if storage.exists(measured) else {},
            decision=storage.read_json(storage.join(settings.place("promotion"), "decision.json")),
            training_history=model["history"],
            training_curve=model.get("curve", []),  # models of before there were looks at val lack it
            real_gallery=real_gallery,
            real_names=names,
            generated_gallery=(generated[shown], soft[shown]),
            generated_indices=indices[shown].tolist(),
            predictions=_predictions(settings.place("sweep"), sweep, val),
            speckle=compare_speckle(
                (train.images[some], train.labels[some]),
                (generated, soft.argmax(1).astype(np.uint8)),
                tiles.manifest.class_table,
            ),
            settings_yaml=settings_yaml,
            date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
            title=settings.out.rstrip("/").rsplit("/", 1)[-1],
        )
    )
    folder = settings.place("report")
    page = storage.join(folder, "report.html")
    storage.put(page, html.encode())
    storage.put_json(storage.join(folder, "report.json"), data)
    log.info("report: %s", page)
    return page
