"""Scores from one confusion matrix, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from dakter.errors import DataError
from dakter.metrics import confusion_matrix, iou, miou
from dakter.schema import IGNORE


def test_confusion_counts_true_by_predicted_without_ignored() -> None:
    labels = np.array([[0, 0, 1], [1, IGNORE, 0]], np.uint8)
    predictions = np.array([[0, 2, 1], [0, 1, 0]], np.uint8)
    assert confusion_matrix(labels, predictions, 3).tolist() == [[2, 0, 1], [1, 1, 0], [0, 0, 0]]


def test_iou_and_mean_leave_absent_classes_out() -> None:
    confusion = np.array([[2, 0, 1], [1, 1, 0], [0, 0, 0]])
    scores = iou(confusion)
    np.testing.assert_allclose(scores[:2], [2 / 4, 1 / 2])
    assert np.isnan(scores[2])  # false alarms for it cost class 0, which they cover
    assert miou(confusion) == pytest.approx(0.5)
    stacked = iou(np.stack([confusion, np.eye(3, dtype=int)]))
    np.testing.assert_allclose(stacked[1], 1.0)
    assert np.isnan(miou(np.zeros((3, 3), int)))


def test_wrong_values_and_shapes_are_refused() -> None:
    with pytest.raises(DataError, match=r"expected 0\.\.1"):
        confusion_matrix(np.array([0, 2]), np.array([0, 1]), 2)
    with pytest.raises(DataError, match="one shape"):
        confusion_matrix(np.zeros(2), np.zeros(3), 2)
