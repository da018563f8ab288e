import json

import numpy as np
import pytest

from dakter.errors import DataError
from dakter.evaluate.scores import calibrated_on, confusions, f1, precision, recall, score
from dakter.schema import IGNORE

# 8 pixels truly of class 0 (6 found), 4 of class 1 (3 found), none of class 2 (called once).
CONFUSION = np.array([[6, 1, 1], [1, 3, 0], [0, 0, 0]])


def one_hot(labels: np.ndarray, num_classes: int, sure: float) -> np.ndarray:
    p = np.full((*labels.shape, num_classes), (1 - sure) / (num_classes - 1), dtype=np.float32)
    np.put_along_axis(p, labels[..., None].astype(np.int64), sure, axis=-1)
    return np.moveaxis(p, -1, 1)


def test_class_scores_by_hand() -> None:
    assert precision(CONFUSION)[:2] == pytest.approx([6 / 7, 3 / 4])
    assert precision(CONFUSION)[2] == 0.0  # called once, wrongly
    assert recall(CONFUSION)[:2] == pytest.approx([6 / 8, 3 / 4])
    assert f1(CONFUSION)[:2] == pytest.approx([12 / 15, 6 / 8])
    assert np.isnan([recall(CONFUSION)[2], f1(CONFUSION)[2]]).all()
    assert np.isnan(precision(np.array([[5, 0], [3, 0]]))[1])  # never called


def test_class_scores_over_leading_axes() -> None:
    stack = np.stack([CONFUSION, 2 * CONFUSION])[None]
    for of in (precision, recall, f1):
        assert of(stack).shape == (1, 2, 3)
        assert of(stack)[0, 1, :2] == pytest.approx(of(CONFUSION)[:2])


@pytest.mark.parametrize("chunk", [1, 2, 100])
def test_score_of_a_set_by_hand(chunk: int) -> None:
    # Image 0: class 0 right twice, class 1 missed twice. Image 1: class 1 right, one pixel unlabelled.
    labels = np.array([[[0, 0], [1, 1]], [[1, 1], [1, IGNORE]], [[0, 0], [0, 0]]], dtype=np.uint8)
    called = np.array([[[0, 0], [0, 0]], [[1, 1], [1, 0]], [[0, 0], [0, 1]]], dtype=np.uint8)
    found = score(
        lambda images: one_hot(images[:, 0], 3, 0.8),
        called[:, None],
        labels,
        num_classes=3,
        temperature=2.0,
        chunk=chunk,
    )
    assert found.confusions.dtype == np.int64
    assert found.confusions[0].tolist() == [[2, 0, 0], [2, 0, 0], [0, 0, 0]]
    assert found.confusions[1].tolist() == [[0, 0, 0], [0, 3, 0], [0, 0, 0]]
    assert found.confusions[2].tolist() == [[3, 1, 0], [0, 0, 0], [0, 0, 0]]
    data = json.loads(json.dumps(found.to_json(("sea", "oil", "ship")), allow_nan=False))
    assert data["iou"][:2] == pytest.approx([5 / 8, 3 / 6])
    assert data["iou"][2] is None
    assert data["miou"] == pytest.approx((5 / 8 + 3 / 6) / 2)
    assert data["recall"][:2] == pytest.approx([5 / 6, 3 / 5])
    # 8 of 11 pixels right at p = 0.8, three wrong at p = 0.1
    assert data["nll"] == pytest.approx(-(8 * np.log(0.8) + 3 * np.log(0.1)) / 11)
    right, wrong = 0.2**2 + 2 * 0.1**2, 0.8**2 + 0.9**2 + 0.1**2
    assert data["brier"] == pytest.approx((8 * right + 3 * wrong) / 11)
    softer = np.sqrt([0.8, 0.1, 0.1])
    softer /= softer.sum()
    assert data["nll_tempered"] == pytest.approx(-(8 * np.log(softer[0]) + 3 * np.log(softer[1])) / 11, rel=1e-5)
    # Class 1 was claimed at 0.8 for four pixels, three of them true, and at 0.1 for seven, two of them true.
    assert data["ece"][1] == pytest.approx((4 * abs(0.8 - 3 / 4) + 7 * abs(0.1 - 2 / 7)) / 11, rel=1e-5)
    assert set(data["reliability"]) == {"sea", "oil", "ship"}
    assert confusions(
        lambda images: one_hot(images[:, 0], 3, 0.8), called[:, None], labels, num_classes=3, chunk=chunk
    ).tolist() == (found.confusions.tolist())


def test_temperature_softens_an_overconfident_model_and_does_not_hang_on_chunks() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (6, 16, 16)).astype(np.uint8)
    called = np.where(rng.random(labels.shape) < 0.8, labels, 1 - labels).astype(np.uint8)  # 80 % right, claims 99 %

    def fit(chunk: int, num_pixels: int) -> float:
        def sure(images: np.ndarray) -> np.ndarray:
            return one_hot(images[:, 0], 2, 0.99)

        common = {"num_classes": 2, "chunk": chunk}
        temperature, found = calibrated_on(sure, called[:, None], labels, num_pixels=num_pixels, seed=0, **common)
        assert np.array_equal(found, confusions(sure, called[:, None], labels, **common))
        return temperature

    share = float((called == labels).mean())
    # The tempered claim equals the share that is right: T = logit(0.99) / logit(share).
    expected = np.log(0.99 / 0.01) / np.log(share / (1 - share))
    assert fit(6, 10**6) == pytest.approx(expected, rel=1e-3)
    assert fit(1, 10**6) == pytest.approx(fit(4, 10**6))
    assert fit(1, 600) == fit(4, 600)
    assert fit(1, 600) != fit(1, 10**6)


@pytest.mark.parametrize(
    ("predict", "message"),
    [
        (lambda x: np.full((len(x), 4, 2, 2), 0.25, np.float32), "was it trained on these classes"),
        (lambda x: np.full((len(x), 2, 2, 2), 0.25, np.float32), "no probabilities"),
        (lambda x: np.full((len(x), 2, 2, 2), np.nan, np.float32), "no probabilities"),
        (lambda x: np.full((len(x), 2, 2, 2), 0.5, np.float64), "expected float32"),
    ],
)
def test_predictions_that_are_none_are_refused(predict: object, message: str) -> None:
    labels = np.zeros((3, 2, 2), dtype=np.uint8)
    with pytest.raises(DataError, match=message):
        confusions(predict, labels[:, None], labels, num_classes=2, chunk=2)  # type: ignore[arg-type]


def test_an_empty_set_is_refused() -> None:
    empty = np.zeros((0, 2, 2), dtype=np.uint8)
    with pytest.raises(DataError, match="at least one"):
        confusions(lambda x: x, empty[:, None], empty, num_classes=2, chunk=2)
