import math

import numpy as np
import pytest

from dakter.errors import DataError
from dakter.evaluate.calibration import Reliability, fit_temperature, proper_sums, temper
from dakter.metrics import FLOOR
from dakter.schema import IGNORE


def two_class(p_oil: list[float], labels: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """One image of one row: probability of class 1 and label of each pixel."""
    p = np.array(p_oil, dtype=np.float32)
    return np.stack([1 - p, p])[None, :, None], np.array(labels, dtype=np.uint8)[None, None]


def test_nll_and_brier_by_hand() -> None:
    probabilities, labels = two_class([0.9, 0.2, 0.5, 0.7], [1, 1, 0, IGNORE])
    nll, brier, pixels = proper_sums(probabilities, labels)[0]
    assert pixels == 3
    assert nll == pytest.approx(-math.log(0.9) - math.log(0.2) - math.log(0.5), rel=1e-6)
    assert brier == pytest.approx(2 * 0.1**2 + 2 * 0.8**2 + 2 * 0.5**2, rel=1e-6)


def test_three_class_brier_counts_every_class() -> None:
    probabilities = np.array([0.5, 0.3, 0.2], dtype=np.float32).reshape(1, 3, 1, 1)
    sums = proper_sums(probabilities, np.array([[[1]]], dtype=np.uint8))
    assert sums[0, 1] == pytest.approx(0.25 + 0.49 + 0.04)


def test_certain_and_wrong_costs_a_finite_price() -> None:
    probabilities, labels = two_class([0.0, 1.0], [1, 1])
    assert proper_sums(probabilities, labels)[0, 0] == pytest.approx(-math.log(FLOOR))


def test_images_are_summed_one_by_one() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4, 3, 5, 6)).astype(np.float32)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    y = rng.integers(0, 3, (4, 5, 6)).astype(np.uint8)
    y[2] = IGNORE
    together = proper_sums(p, y)
    for i in range(4):
        assert together[i] == pytest.approx(proper_sums(p[i : i + 1], y[i : i + 1])[0])
    assert together[2].tolist() == [0.0, 0.0, 0.0]


def test_ece_by_hand() -> None:
    # Class 1: bin 1 holds 0.10 and 0.12 (one of two true), bin 14 holds 0.95, 1.0 (both true); IGNORE counts nowhere.
    probabilities, labels = two_class([0.10, 0.12, 0.95, 1.0, 0.5], [0, 1, 1, 1, IGNORE])
    found = Reliability.of(probabilities, labels)
    expected = (2 * abs(0.11 - 0.5) + 2 * abs(0.975 - 1.0)) / 4
    assert found.ece()[1] == pytest.approx(expected, rel=1e-5)
    curve = found.curve(1)
    assert curve["count"] == [0, 2, *[0] * 12, 2]
    assert curve["confidence"][1] == pytest.approx(0.11)
    assert curve["frequency"][14] == 1.0
    assert curve["confidence"][7] is None
    assert len(curve["frequency"]) == 15


def test_reliability_adds_over_images() -> None:
    rng = np.random.default_rng(1)
    p = rng.dirichlet(np.ones(3), size=(6, 4, 4)).transpose(0, 3, 1, 2).astype(np.float32)
    y = rng.integers(0, 3, (6, 4, 4)).astype(np.uint8)
    added = Reliability.of(p[:2], y[:2]) + Reliability.of(p[2:], y[2:])
    assert added.ece() == pytest.approx(Reliability.of(p, y).ece())
    assert added.count.sum() == 6 * 16 * 3


def test_no_labelled_pixel_has_no_calibration_error() -> None:
    assert np.isnan(Reliability.of(*two_class([0.3], [IGNORE])).ece()).all()


def test_temper_is_power_renormalised() -> None:
    q = np.array([0.8, 0.15, 0.05], dtype=np.float32).reshape(1, 3, 1, 1)
    expected = np.sqrt(q) / np.sqrt(q).sum()
    assert temper(q, 2.0) == pytest.approx(expected, rel=1e-5)
    assert temper(q, 1.0) is q
    assert temper(q, 0.1).sum() == pytest.approx(1.0)


@pytest.mark.parametrize("true_temperature", [0.5, 1.0, 2.5])
def test_temperature_is_recovered(true_temperature: float) -> None:
    """Labels drawn from softmax(logits / T) of overconfident (or shy) logits: the fit finds T, and NLL falls."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (40000, 3))
    claimed = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    honest = temper(claimed, true_temperature)
    labels = (rng.random((len(honest), 1)) > honest.cumsum(1)).sum(1).clip(0, 2).astype(np.uint8)
    labels[::7] = IGNORE
    assert fit_temperature(claimed.astype(np.float32), labels) == pytest.approx(true_temperature, rel=0.04)


def test_what_cannot_be_scored_is_refused() -> None:
    p, y = two_class([0.5, 0.5], [0, 1])
    with pytest.raises(DataError, match=r"expected \(N, K, H, W\)"):
        proper_sums(p[0], y)
    with pytest.raises(DataError, match="labels hold class 4"):
        proper_sums(p, np.full_like(y, 4))
    with pytest.raises(DataError, match="no labelled validation pixel"):
        fit_temperature(np.full((3, 2), 0.5), np.full(3, IGNORE, dtype=np.uint8))
