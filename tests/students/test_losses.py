"""Losses on soft targets against hand calculations."""

from __future__ import annotations

import math

import torch

from dakter.schema import IGNORE
from dakter.students.losses import cross_entropy, labelled, one_hot, soft_dice, temper


def test_one_hot_leaves_ignored_pixels_empty() -> None:
    target = one_hot(torch.tensor([[[0, 2, IGNORE]]]), 3)
    assert target[0, :, 0].T.tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]
    assert labelled(target).tolist() == [[[1, 1, 0]]]


def test_temper_is_the_renormalised_power() -> None:
    soft = torch.tensor([0.8, 0.2, 0.0]).reshape(1, 3, 1, 1)
    powered = torch.tensor([math.sqrt(0.8), math.sqrt(0.2), 0.0])
    torch.testing.assert_close(temper(soft, 2.0).flatten(), powered / powered.sum())
    torch.testing.assert_close(temper(soft, 0.5).flatten(), torch.tensor([0.64, 0.04, 0.0]) / 0.68)
    assert temper(soft, 1.0) is soft


def test_cross_entropy_on_hard_labels_is_torchs_and_ignores() -> None:
    logits = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    labels = torch.randint(0, 4, (2, 3, 3), generator=torch.Generator().manual_seed(2))
    labels[0, 1] = IGNORE
    expected = torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORE)
    torch.testing.assert_close(cross_entropy(logits, one_hot(labels, 4), torch.ones(2)), expected)


def test_cross_entropy_weighs_rows() -> None:
    logits = torch.zeros(2, 2, 1, 1)
    target = one_hot(torch.tensor([[[0]], [[1]]]), 2)
    loss = cross_entropy(logits, target, torch.tensor([1.0, 3.0]))
    torch.testing.assert_close(loss, torch.tensor(2.0 * math.log(2.0)))


def test_dice_is_least_at_the_soft_target_itself() -> None:
    target = torch.tensor([0.7, 0.3]).reshape(1, 2, 1, 1).expand(1, 2, 4, 4)
    losses = {p: float(soft_dice(torch.tensor([p, 1 - p]).log().reshape(1, 2, 1, 1).expand(1, 2, 4, 4), target))
              for p in (0.5, 0.7, 0.99)}  # fmt: skip
    assert abs(losses[0.7]) < 1e-6 < min(losses[0.5], losses[0.99])


def test_dice_of_hard_labels_by_hand_and_absent_class_costs() -> None:
    # Two pixels of class 0, none of class 1; p = (.75, .25) everywhere, one more pixel is ignored.
    logits = torch.tensor([0.75, 0.25]).log().reshape(1, 2, 1, 1).expand(1, 2, 1, 3).clone().requires_grad_()
    loss = soft_dice(logits, one_hot(torch.tensor([[[0, 0, IGNORE]]]), 2))
    present = 1 - (2 * 1.5) / (1.5 + 2.0)
    torch.testing.assert_close(loss, torch.tensor((present + 0.25) / 2))
    loss.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert float(logits.grad[0, 1, 0, 0]) > 0  # less of the absent class is better
    assert logits.grad[..., 2].abs().sum() == 0
