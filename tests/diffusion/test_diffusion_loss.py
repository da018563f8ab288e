from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dakter.config import load
from dakter.diffusion.balance import class_weights
from dakter.diffusion.loss import clean_image, image_target, label_loss_B, snr_weight, soft_label_loss_B
from dakter.diffusion.schedule import DiffusionConfig, add_noise, alpha_sigma
from dakter.errors import ConfigError
from dakter.schema import IGNORE


@pytest.mark.parametrize("objective", ["v", "x0"])
def test_clean_image_inverts_the_target(objective: str) -> None:
    x, noise, t = torch.randn(3, 1, 4, 4), torch.randn(3, 1, 4, 4), torch.tensor([0.01, 0.5, 1.0])
    out = image_target(x, noise, t, objective)
    assert torch.allclose(clean_image(out, add_noise(x, noise, t), t, objective), x, atol=1e-5)


def test_label_loss_leaves_unlabelled_pixels_out() -> None:
    labels = torch.tensor([[[0, IGNORE]], [[IGNORE, IGNORE]]], dtype=torch.uint8)
    logits = torch.zeros(2, 4, 1, 2)
    logits[:, 3, :, 1] = 99.0  # where it is not labelled, anything goes
    assert label_loss_B(logits, labels, "ce").tolist() == pytest.approx([math.log(4), 0.0])
    onehot = torch.tensor([1.0, -1, -1, -1]).view(1, 4, 1, 1).expand(2, 4, 1, 2)
    assert label_loss_B(onehot, labels, "mse").tolist() == [0.0, 0.0]
    assert label_loss_B(torch.zeros(2, 4, 1, 2), labels, "mse").tolist() == [1.0, 0.0]


def test_weights_follow_the_share_of_labelled_pixels() -> None:
    labels = np.array([[[0] * 12 + [1] * 3 + [IGNORE] * 9 + [3]]], np.uint8)
    weights = class_weights(labels, 4, 0.5)
    assert weights is not None
    assert (weights[1] / weights[0]).item() == pytest.approx(2.0), "a quarter as frequent"
    assert weights[2].item() == 1.0, "of a class that is not there nothing is to be said"
    assert float(weights[[0, 1, 3]] @ torch.tensor([12.0, 3, 1])) == pytest.approx(16.0), "a mean of 1 over pixels"
    assert class_weights(labels, 4, 0.0) is None


@pytest.mark.parametrize("soft", [False, True])
def test_with_rare_classes_weighed_the_softmax_is_the_posterior_still(soft: bool) -> None:
    posterior, weights = torch.tensor([0.9, 0.08, 0.02]), torch.tensor([0.5, 3.0, 20.0])
    logits = torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.05)
    for _ in range(600):
        optimizer.zero_grad()
        rows = logits.view(1, 3, 1, 1).expand(3, 3, 1, 1)
        if soft:
            loss = soft_label_loss_B(rows[:1], posterior.view(1, 3, 1, 1), weights).sum()
        else:  # each class as often as it is likely
            loss = label_loss_B(rows, torch.arange(3, dtype=torch.uint8).view(3, 1, 1), "ce", weights) @ posterior
        torch.autograd.backward(loss)
        optimizer.step()
    assert logits.softmax(0).tolist() == pytest.approx(posterior.tolist(), abs=1e-4)


def test_a_soft_label_that_is_sure_costs_what_a_hard_one_does() -> None:
    logits, weights = torch.randn(2, 3, 4, 4), torch.tensor([0.5, 3.0, 20.0])
    labels = torch.randint(0, 3, (2, 4, 4), dtype=torch.uint8)
    sure = torch.nn.functional.one_hot(labels.long(), 3).movedim(-1, 1).float()
    assert torch.allclose(soft_label_loss_B(logits, sure, weights), label_loss_B(logits, labels, "ce", weights))


def test_only_cross_entropy_weighs_classes() -> None:
    with pytest.raises(ConfigError, match="rare_class_power 0 with label_loss mse, or label_loss ce"):
        load(DiffusionConfig, {"rare_class_power": 0.5, "label_loss": "mse"})
    assert "rare_class_power" not in DiffusionConfig().dump(), "settings of earlier models stay what they were"


def test_min_snr_weights_are_one_in_both_units() -> None:
    t = torch.tensor([0.05, 0.3, 0.8, 1.0])
    alpha, sigma = alpha_sigma(t)
    snr = (alpha / sigma) ** 2
    in_x0 = snr_weight(t, "x0", 5.0)
    assert torch.allclose(in_x0, snr.clamp_max(5.0), rtol=1e-5)
    assert torch.allclose(snr_weight(t, "v", 5.0), in_x0 / (snr + 1), rtol=1e-5)
    assert torch.equal(snr_weight(t, "v", None), torch.ones(4))
