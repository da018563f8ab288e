from __future__ import annotations

import numpy as np
import pytest
import torch

from dakter.diffusion.balance import balancing_factor, chosen_b, enter_labels, probabilities, reenter
from dakter.errors import DataError
from dakter.schema import IGNORE


def test_b_gives_image_and_label_equal_power() -> None:
    images = np.random.default_rng(0).integers(0, 255, (5, 1, 8, 8), dtype=np.uint8)
    x = images.astype(np.float64) / 127.5 - 1
    b = balancing_factor(images)
    y = enter_labels(torch.from_numpy(images[:, 0] % 2), 2, b)
    assert float(y.square().mean()) == pytest.approx(float((x**2).mean()), rel=1e-5)
    assert balancing_factor(images, "std") == pytest.approx(x.std(), rel=1e-5)


def test_b_of_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="there are none"):
        balancing_factor(np.zeros((0, 1, 4, 4), np.uint8))
    with pytest.raises(DataError, match="std"):
        balancing_factor(np.full((2, 1, 4, 4), 9, np.uint8), "std")


def test_chosen_b_prefers_the_set_one() -> None:
    assert [chosen_b(0.7, "rms", 0.4, 0.3), chosen_b(None, "rms", 0.4, 0.3), chosen_b(None, "std", 0.4, 0.3)] == [
        0.7,
        0.4,
        0.3,
    ]


def test_unlabelled_pixels_enter_as_zero() -> None:
    y = enter_labels(torch.tensor([[[0, 1, IGNORE]]], dtype=torch.uint8), 2, 0.5)
    assert y[0, :, 0].tolist() == [[0.5, -0.5, 0.0], [-0.5, 0.5, 0.0]]


def test_both_label_branches_read_as_probabilities_and_reenter() -> None:
    soft = torch.tensor([0.2, 0.5, 0.3]).view(1, 3, 1, 1)
    assert torch.allclose(probabilities(soft.log() + 7, "ce"), soft)
    assert torch.allclose(probabilities(2 * soft - 1, "mse"), soft, atol=1e-6)
    wild = probabilities(torch.tensor([-3.0, -2.0, 4.0]).view(1, 3, 1, 1), "mse")
    assert torch.allclose(wild.flatten(), torch.tensor([0.0, 0.0, 1.0]), atol=1e-6)
    onehot = torch.tensor([0.0, 1.0]).view(1, 2, 1, 1)
    assert torch.equal(reenter(onehot, 0.4), enter_labels(torch.ones(1, 1, 1, dtype=torch.uint8), 2, 0.4))
