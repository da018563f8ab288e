"""Studies of arms by seeds by architectures: means, pairing, blocks, worth in labels, and scores kept in a record."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from dakter import rng
from dakter.errors import DataError, IntegrityError
from dakter.evaluate.bootstrap import Resampling
from dakter.evaluate.packed import pack, unpack
from dakter.evaluate.scores import Scores, score
from dakter.evaluate.study import MIOU, NLL, Students, Study, block, class_iou, worth_labels

GROUPS = {"palsar": np.array([0, 0, 1, 2]), "sentinel": np.array([2, 3, 4])}
STUDY = Study(GROUPS, Resampling(400, 0, 0.95))


def _scores(sensor: str, right: float, luck: int) -> Scores:
    """A student that is right on about ``right`` of the pixels of a sensor's images."""
    draw = rng.numpy_rng(luck, f"test/study/{sensor}")
    labels = draw.integers(0, 2, (len(GROUPS[sensor]), 16, 16)).astype(np.uint8)
    said = np.where(draw.random(labels.shape) < right, labels, 1 - labels)
    p = np.stack([1 - said, said], 1) * 0.8 + 0.1
    images = np.arange(len(labels))

    def predict(chosen: np.ndarray) -> np.ndarray:
        return p[chosen].astype(np.float32)

    return score(predict, images, labels, num_classes=2, temperature=1.5, chunk=2)


def _arm(right: float, seeds: int = 3, architectures: str = "AB", luck: int = 0) -> Students:
    return {
        seed: {
            name: {sensor: _scores(sensor, right - 0.02 * seed, luck + seed) for sensor in GROUPS}
            for name in architectures
        }
        for seed in range(seeds)
    }


def test_a_score_is_the_mean_over_sensors_architectures_and_seeds() -> None:
    arm = _arm(0.8)
    each = [
        MIOU.statistic(MIOU.sums(scores).sum(axis=0))
        for seed in arm.values()
        for architecture in seed.values()
        for scores in architecture.values()
    ]
    assert STUDY.estimate(arm, MIOU).mean == pytest.approx(float(np.mean(np.array(each))))
    oil = STUDY.estimate(arm, class_iou(1))
    assert 0 < oil.low < oil.mean < oil.high < 1


def test_a_difference_pairs_images_and_seeds() -> None:
    better, worse = _arm(0.9), _arm(0.7)
    found = STUDY.difference(better, worse, MIOU)
    assert found.difference == pytest.approx(STUDY.estimate(better, MIOU).mean - STUDY.estimate(worse, MIOU).mean)
    assert 0 < found.low < found.difference < found.high
    itself = STUDY.difference(better, better, NLL)
    assert (itself.low, itself.difference, itself.high) == (0.0, 0.0, 0.0)  # not so if seeds were drawn apart


def test_what_only_one_arm_has_is_left_out_on_both_sides() -> None:
    full, part = _arm(0.9), _arm(0.7, seeds=2, architectures="B")
    cut = {seed: {"B": full[seed]["B"]} for seed in range(2)}
    assert STUDY.difference(full, part, MIOU) == STUDY.difference(cut, part, MIOU)
    assert block([full, part]) == ([0, 1], ["B"])
    ragged = {0: full[0], 1: full[1], 2: {"A": full[2]["A"]}}
    assert block([ragged]) == ([0, 1], ["A", "B"])
    with pytest.raises(DataError, match="no student of the same seed"):
        block([{0: full[0]}, {1: full[1]}])


def test_a_segmenter_is_compared_with_the_mean_over_architectures() -> None:
    segmenter, students = _arm(0.9, seeds=2, architectures="-"), _arm(0.7)
    found = STUDY.difference(segmenter, students, MIOU, same_architectures=False)
    two = {seed: students[seed] for seed in range(2)}
    expected = STUDY.estimate(segmenter, MIOU).mean - STUDY.estimate(two, MIOU).mean
    assert found.difference == pytest.approx(expected)


def test_scores_of_other_images_are_refused() -> None:
    other = Study({**GROUPS, "palsar": np.arange(5)}, STUDY.resampling)
    with pytest.raises(DataError, match="different data"):
        other.estimate(_arm(0.9), MIOU)


def test_worth_in_labels() -> None:
    assert worth_labels(0.7, (100, 0.7), (400, 0.8)) == pytest.approx(100)
    assert worth_labels(0.75, (100, 0.7), (400, 0.8)) == pytest.approx(200)
    assert worth_labels(0.81, (100, 0.7), (400, 0.8)) == math.inf
    assert worth_labels(0.75, (100, 0.8), (400, 0.8)) is None


def test_packed_scores_come_back() -> None:
    scores = _scores("palsar", 0.8, 0)
    packed = json.loads(json.dumps(pack(scores)))
    back = unpack(packed)
    assert np.array_equal(back.confusions, scores.confusions)
    assert np.allclose(back.proper, scores.proper, rtol=1e-6)
    assert np.allclose(back.proper_tempered, scores.proper_tempered, rtol=1e-6)
    assert np.allclose(back.reliability_tempered.ece(), scores.reliability_tempered.ece(), atol=1e-6)
    assert back.temperature == scores.temperature
    with pytest.raises(IntegrityError, match="cut short"):
        unpack({**packed, "proper": {**packed["proper"], "data": packed["proper"]["data"][:-8]}})
    with pytest.raises(IntegrityError, match="lack"):
        unpack({key: value for key, value in packed.items() if key != "reliability"})
