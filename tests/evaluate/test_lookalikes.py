"""Thresholds matched to a wanted recall of oil, and the look-alikes beyond them, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dakter import rng
from dakter.errors import DataError
from dakter.evaluate.bootstrap import Resampling
from dakter.evaluate.lookalikes import (
    NUM_BINS,
    histograms,
    log_taken_share,
    matched_sums,
    probability_at,
    recall,
    taken_share,
    threshold,
)
from dakter.evaluate.study import Measure, Study
from dakter.schema import IGNORE

OIL, LOOK_ALIKE = 1, 2


def _sums(oil: dict[int, int], look_alikes: dict[int, int], found: int, true: int) -> np.ndarray:
    """From pixels by bin, and what the reference found of how much oil."""
    counts = np.zeros((1, 2, NUM_BINS), np.int64)
    for row, of_bin in zip(counts[0], (oil, look_alikes), strict=True):
        row[list(of_bin)] = list(of_bin.values())
    reference = np.zeros((1, 3, 3), np.int64)
    reference[0, OIL] = [true - found, found, 0]
    reference[0, LOOK_ALIKE] = [7, 99, 5]  # no part of it
    return matched_sums(counts, reference, OIL)


def test_histograms_count_the_probability_of_oil_over_oil_and_over_look_alikes() -> None:
    labels = np.array([[[1, 1, 2]], [[0, 2, IGNORE]], [[2, 2, 2]]], np.uint8)
    odds = np.array([[[-99.0, 99.0, 0.0]], [[2.0, 15.9, -1.0]], [[-8.05, 0.01, 0.124]]])
    of_oil = 1 / (1 + np.exp(-odds))
    p = np.stack([1 / (1 + np.exp(odds)), of_oil, 0 * of_oil], 1).astype(np.float32)
    found = histograms(lambda at: p[at], np.arange(3), labels, num_classes=3, oil=OIL, look_alike=LOOK_ALIKE, chunk=2)
    assert found.shape == (3, 2, NUM_BINS)
    assert [[np.flatnonzero(row).tolist() for row in image] for image in found] == [
        [[0, 255], [128]],
        [[], [255]],
        [[], [63, 128]],
    ]
    assert found[2, 1, 128] == 2
    with pytest.raises(DataError, match="no probabilities"):
        histograms(lambda at: 2 * p[at], np.arange(3), labels, num_classes=3, oil=1, look_alike=2, chunk=2)


def test_the_threshold_cuts_a_bin_where_the_wanted_recall_is_reached() -> None:
    # 10 oil pixels: 4 in bin 200, 6 in bin 100. Wanted: 7, so the upper half of bin 100; and half its look-alikes.
    sums = _sums({200: 4, 100: 6}, {250: 1, 100: 8, 99: 50}, found=7, true=10)
    assert recall(sums).tolist() == [0.7]
    assert threshold(sums).tolist() == pytest.approx([float(probability_at(100.5))])
    assert taken_share(sums).tolist() == pytest.approx([(1 + 4 + 0.5) / (59 + 1)])
    assert log_taken_share(sums).tolist() == pytest.approx([math.log(5.5 / 60)])
    # Exactly at an edge of a bin: nothing of the next one.
    edge = _sums({200: 4, 100: 6}, {250: 1, 100: 8, 99: 50}, found=4, true=10)
    assert threshold(edge).tolist() == pytest.approx([float(probability_at(200))])
    assert taken_share(edge).tolist() == pytest.approx([1.5 / 60])


def test_a_probability_of_a_half_is_the_middle_and_sure_ones_have_bins_of_their_own() -> None:
    assert probability_at(NUM_BINS / 2) == 0.5
    # Below 1 / NUM_BINS all of them, and yet apart.
    odds = np.array([[[-12.0, -9.0, -6.0]]])
    p = np.stack([1 / (1 + np.exp(odds)), 1 / (1 + np.exp(-odds)), 0 * odds], 1).astype(np.float32)
    oil = np.full((1, 1, 3), OIL, np.uint8)
    found = histograms(lambda at: p[at], np.arange(1), oil, num_classes=3, oil=OIL, look_alike=LOOK_ALIKE, chunk=1)
    assert np.flatnonzero(found[0, 0]).tolist() == [32, 56, 80]
    assert (probability_at(np.array([1, 2, 3])) < 1e-6).all()


def test_all_oil_none_and_what_is_undefined() -> None:
    oil, look_alikes = {200: 4, 3: 1}, {255: 2, 3: 5, 2: 3}
    everything = _sums(oil, look_alikes, found=9, true=9)
    assert threshold(everything).tolist() == pytest.approx([float(probability_at(3))])
    assert taken_share(everything).tolist() == pytest.approx([7.5 / 11])
    nothing = _sums(oil, look_alikes, found=0, true=9)
    assert threshold(nothing).tolist() == pytest.approx([1.0], abs=1e-6)
    assert taken_share(nothing).tolist() == pytest.approx([0.5 / 11])
    assert np.isnan(taken_share(_sums(oil, {}, found=1, true=9))).all()
    without_oil = _sums({}, look_alikes, found=0, true=0)
    assert np.isnan([*taken_share(without_oil), *threshold(without_oil), *recall(without_oil)]).all()
    stacked = np.stack([everything, nothing])[None]
    assert taken_share(stacked).shape == (1, 2, 1)
    assert taken_share(stacked)[0, :, 0] == pytest.approx([7.5 / 11, 0.5 / 11])


def test_a_student_that_tells_look_alikes_from_oil_takes_fewer_of_them_at_the_same_recall() -> None:
    """Whatever its own threshold would be: a paired study of a good student that calls little oil, and a poor one."""
    draw = rng.numpy_rng(0, "test/lookalikes")
    labels = draw.integers(0, 3, (12, 16, 16)).astype(np.uint8)
    evidence = np.where(labels == OIL, 1.0, -1.0) + np.where(labels == LOOK_ALIKE, 1.0, 0.0)

    def student(noise: float, bias: float) -> np.ndarray:
        of_oil = 1 / (1 + np.exp(-(evidence + bias + noise * draw.normal(size=labels.shape))))
        return np.stack([1 - of_oil, of_oil, 0 * of_oil], 1).astype(np.float32)

    good, poor = student(0.5, -2.0), student(2.0, 0.0)
    called = poor.argmax(axis=1)
    reference = np.stack(
        [np.bincount(3 * t.ravel() + c.ravel(), minlength=9).reshape(3, 3) for t, c in zip(labels, called, strict=True)]
    )

    def arm(p: np.ndarray) -> dict[int, dict[str, dict[str, np.ndarray]]]:
        counts = histograms(lambda at: p[at], np.arange(12), labels, num_classes=3, oil=1, look_alike=2, chunk=5)
        return {0: {"A": {"s": matched_sums(counts, reference, OIL)}}}

    study = Study({"s": np.arange(12)}, Resampling(300, 0, 0.95))
    measure: Measure[np.ndarray] = Measure("log", lambda sums: sums, log_taken_share)
    found = study.difference(arm(good), arm(poor), measure)
    assert found.low < found.difference < found.high < math.log(0.5)
    itself = study.difference(arm(poor), arm(poor), measure)
    assert (itself.low, itself.difference, itself.high) == (0.0, 0.0, 0.0)
    # By its threshold the reference finds what it finds by its likeliest class, here as p = 1/2 parts two classes.
    assert float(threshold(arm(poor)[0]["A"]["s"].sum(axis=0))) == pytest.approx(0.5, abs=0.05)
