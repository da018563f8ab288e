from __future__ import annotations

import math

import pytest
import torch

from dakter.diffusion.loss import clean_image, image_target, label_loss_B, snr_weight
from dakter.diffusion.schedule import add_noise, alpha_sigma
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


def test_min_snr_weights_are_one_in_both_units() -> None:
    t = torch.tensor([0.05, 0.3, 0.8, 1.0])
    alpha, sigma = alpha_sigma(t)
    snr = (alpha / sigma) ** 2
    in_x0 = snr_weight(t, "x0", 5.0)
    assert torch.allclose(in_x0, snr.clamp_max(5.0), rtol=1e-5)
    assert torch.allclose(snr_weight(t, "v", 5.0), in_x0 / (snr + 1), rtol=1e-5)
    assert torch.equal(snr_weight(t, "v", None), torch.ones(4))
