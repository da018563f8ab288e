"""Losses on soft targets against hand calculations."""

from __future__ import annotations

import math

import torch

from dakter.schema import IGNORE
from dakter.students.losses import confidence, consistency, cross_entropy, labelled, one_hot, soft_dice, temper


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


def test_certain_pixels_of_soft_rows_weigh_more_and_their_mean_is_one() -> None:
    # Pixels: certain, (.9, .1), uniform, not labelled; the first row is real.
    row = torch.tensor([[1.0, 0.9, 0.5, 0.0], [0.0, 0.1, 0.5, 0.0]])[:, None]
    target, soft_rows = torch.stack([row, row]), torch.tensor([False, True])
    sure = 1 + (0.9 * math.log(0.9) + 0.1 * math.log(0.1)) / math.log(2)
    for gamma in (1.0, 2.0):
        expected = torch.tensor([1.0, sure**gamma, 0.0])
        weight = confidence(target, soft_rows, gamma)
        assert weight[0].tolist() == [[1.0] * 4]
        torch.testing.assert_close(weight[1, 0, :3], expected / expected.mean(), atol=1e-5, rtol=0)
    assert confidence(target, torch.tensor([False, False]), 1.0).tolist() == [[[1.0] * 4]] * 2
    assert float(confidence(torch.full((2, 3, 4, 4), 1 / 3), torch.tensor([True, True]), 1.0).max()) < 0.5


def test_a_weight_of_a_pixel_counts_in_both_losses() -> None:
    logits = torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(3))
    labels = torch.tensor([[[0, 1], [2, 1]], [[1, 1], [0, 2]]])
    weight = torch.ones(2, 2, 2)
    weight[1, 0, 0] = 0.0
    left_out = labels.clone()
    left_out[1, 0, 0] = IGNORE
    target = one_hot(labels, 3)
    torch.testing.assert_close(soft_dice(logits, target, weight), soft_dice(logits, one_hot(left_out, 3)))
    assert torch.equal(soft_dice(logits, target, torch.ones(2, 2, 2)), soft_dice(logits, target))
    per_pixel = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    rows = torch.tensor([2.0, 0.5])
    expected = (per_pixel * weight * rows[:, None, None]).sum() / 8
    torch.testing.assert_close(cross_entropy(logits, target, rows, weight), expected)


def test_consistency_is_the_squared_distance_where_views_show_the_same_place() -> None:
    flip = torch.tensor([[[-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]]).expand(2, 2, 3)
    first = torch.tensor([[0.9, 0.2], [0.1, 0.8]]).log()[None, :, None].expand(2, 2, 1, 2)
    marked = torch.tensor([False, True])
    torch.testing.assert_close(consistency(first, first.flip(-1), flip, marked), torch.tensor(0.0), atol=1e-6, rtol=0)
    # Not flipped: both pixels differ by .7 in both classes; of two rows one counts.
    torch.testing.assert_close(consistency(first, first, flip, marked), torch.tensor(2 * 0.7**2 / 2))
    assert float(consistency(first, first, flip, torch.tensor([False, False]))) == 0.0
