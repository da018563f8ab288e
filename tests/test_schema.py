"""Scales and the checks at the boundary."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dakter import schema
from dakter.errors import DataError


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_every_stored_value_survives_the_round_trip(dtype: type[np.unsignedinteger]) -> None:
    stored = np.arange(np.iinfo(dtype).max + 1, dtype=dtype).reshape(1, 1, -1, 256)
    model = schema.to_model(stored)
    assert float(model.min()) == -1.0
    assert float(model.max()) == 1.0
    assert np.array_equal(schema.to_stored(model, dtype), stored)


def test_values_out_of_range_are_clipped() -> None:
    assert schema.to_stored(np.array([-3.0, 3.0])).tolist() == [0, 255]


def test_stored_soft_labels_sum_to_255_and_keep_the_argmax() -> None:
    p = torch.softmax(torch.randn(3, 5, 16, 16, generator=torch.Generator().manual_seed(0)) * 3, 1)
    q = schema.soft_to_stored(p)
    assert q.dtype == np.uint8
    assert (q.astype(int).sum(1) == 255).all()
    assert np.array_equal(q.argmax(1), p.argmax(1).numpy())
    variation = 0.5 * (schema.soft_from_stored(q) - p).abs().sum(1)
    assert float(variation.max()) <= 4 / 510 + 1e-6


def test_uniform_soft_labels_of_many_classes_do_not_wrap_around() -> None:
    p = np.full((1, 7, 1, 1), 1 / 7, np.float32)
    assert schema.soft_to_stored(p).astype(int).sum() == 255


@pytest.mark.parametrize("wrong", [np.zeros((2, 8, 8), np.uint8), np.zeros((1, 1, 8, 8), np.float32)])
def test_images_of_another_kind_are_refused(wrong: np.ndarray) -> None:
    with pytest.raises(DataError, match="somewhere: images are"):
        schema.check_images(wrong, where="somewhere")


def test_unknown_labels_are_refused_and_ignore_is_not() -> None:
    images = np.zeros((1, 1, 4, 4), np.uint8)
    labels = np.full((1, 4, 4), schema.IGNORE, np.uint8)
    schema.check_labels(labels, images, 2, where="here")
    labels[0, 0, 0] = 7
    with pytest.raises(DataError, match=r"unknown label values \[7\]"):
        schema.check_labels(labels, images, 2, where="here")


def test_soft_labels_must_be_probabilities() -> None:
    good = torch.full((1, 2, 4, 4), 0.5)
    schema.check_soft_labels(good, 2, where="here")
    for bad in (good * 3, good.clone().fill_(float("nan")), torch.stack([good[:, 0] + 1, good[:, 1] - 1], 1)):
        with pytest.raises(DataError):
            schema.check_soft_labels(bad, 2, where="here")
