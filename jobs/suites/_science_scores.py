"""Scores of suite ``science``: the only place of it that reads the test split, once for each finished cell."""

from __future__ import annotations

from typing import Any

import numpy as np

from dakter.data.tiles import Split, TileCorpus, read_test
from dakter.evaluate.packed import pack, pack_array
from dakter.evaluate.scores import Predict, Scores, calibrated_on, score
from jobs.suites import _science_borders as borders
from jobs.suites import _science_lookalikes as lookalikes

CHUNK = 64
_TEMPERATURE_PIXELS = 200_000


def described(corpus: TileCorpus) -> dict[str, Any]:
    """Groups of near-duplicates and sensors of the test images, in the order of every packed score."""
    test = read_test(corpus)
    return {"groups": pack_array(test.groups), "sensors": pack_array(test.sensors), "num_images": len(test.images)}


def scored(predict: Predict, corpus: TileCorpus, *, reads_test: bool) -> dict[str, Any]:
    """Val and test scores as JSON: packed sums an image of test for each sensor, and tables for each and pooled.

    The temperature is fitted on val, both sensors together. ``test`` is None where test is not to be read; it holds
    ``look_alikes`` where the classes tell look-alikes from oil, and ``borders``.
    """
    num_classes = len(corpus.manifest.class_table)
    val = corpus.read("val")
    of_val = _remembered(predict, val)
    temperature, _ = calibrated_on(
        of_val,
        np.arange(len(val.images)),
        val.labels,
        num_classes=num_classes,
        chunk=CHUNK,
        num_pixels=_TEMPERATURE_PIXELS,
        seed=0,
    )
    return {
        "temperature": temperature,
        "val": _tables(of_val, corpus, val, temperature)["tables"],
        "test": _on_test(predict, corpus, temperature) if reads_test else None,
    }


def _on_test(predict: Predict, corpus: TileCorpus, temperature: float) -> dict[str, Any]:
    test, names = read_test(corpus), corpus.manifest.class_table.names
    of_test = _remembered(predict, test)
    found = _tables(of_test, corpus, test, temperature)
    rows = _rows_of_sensors(corpus, test)
    return {
        **found,
        **lookalikes.kept(of_test, test, rows, names, CHUNK),
        **borders.kept(of_test, test, rows, len(names), CHUNK),
    }


def _remembered(predict: Predict, split: Split) -> Predict:
    """Probabilities by the number of an image: several scores are taken from them, and a read-out costs evaluations."""
    images = split.images
    found = np.concatenate([predict(images[start : start + CHUNK]) for start in range(0, len(images), CHUNK)])
    return lambda numbers: found[numbers]


def _rows_of_sensors(corpus: TileCorpus, split: Split) -> dict[str, np.ndarray]:
    """Numbers of the images of each sensor that has any."""
    rows = {sensor: np.flatnonzero(split.sensors == k) for k, sensor in enumerate(corpus.manifest.sensors)}
    return {sensor: own for sensor, own in rows.items() if len(own)}


def _tables(of_split: Predict, corpus: TileCorpus, split: Split, temperature: float) -> dict[str, Any]:
    manifest = corpus.manifest
    found = {
        sensor: score(
            of_split,
            own,
            split.labels[own],
            num_classes=len(manifest.class_table),
            temperature=temperature,
            chunk=CHUNK,
        )
        for sensor, own in _rows_of_sensors(corpus, split).items()
    }
    tables = {sensor: _table(scores, manifest.class_table.names) for sensor, scores in found.items()}
    tables["pooled"] = _table(pooled(list(found.values())), manifest.class_table.names)
    return {"packed": {sensor: pack(scores) for sensor, scores in found.items()}, "tables": tables}


def pooled(parts: list[Scores]) -> Scores:
    """Scores of several sets of images as of one."""
    first = parts[0]
    return Scores(
        first.temperature,
        np.concatenate([part.confusions for part in parts]),
        np.concatenate([part.proper for part in parts]),
        np.concatenate([part.proper_tempered for part in parts]),
        sum((part.reliability for part in parts[1:]), start=first.reliability),
        sum((part.reliability_tempered for part in parts[1:]), start=first.reliability_tempered),
    )


def _table(scores: Scores, class_names: tuple[str, ...]) -> dict[str, Any]:
    """The scores in words; the reliability curves are in the packed sums already."""
    full = scores.to_json(class_names)
    return {key: value for key, value in full.items() if not key.startswith("reliability") and key != "temperature"}
