"""Augmentation moves images and targets alike and depends on (seed, step, row) alone."""

from __future__ import annotations

import torch

from dakter.students.augment import AugmentConfig, augment
from dakter.students.losses import labelled, one_hot

QUIET = AugmentConfig(zoom_share=0.0, gain=0.0, gamma=0.0)


def _pair(rows: int = 16, size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.randint(0, 3, (rows, size, size), generator=torch.Generator().manual_seed(0))
    return labels[:, None].float() - 1.0, one_hot(labels, 3)


def test_turns_keep_image_and_label_together_and_all_eight_occur() -> None:
    images, targets = _pair(1)
    seen = set()
    for step in range(80):
        x, y = augment(images, targets, QUIET, seed=3, step=step)
        assert torch.equal(y.argmax(1)[:, None].float() - 1.0, x)
        seen.add(tuple(x.flatten().tolist()))
    assert len(seen) == 8


def test_a_row_depends_on_seed_step_and_row_alone() -> None:
    images, targets = _pair(4)
    config = AugmentConfig()
    whole, _ = augment(images, targets, config, seed=1, step=5)
    part, _ = augment(images[:2], targets[:2], config, seed=1, step=5)
    assert torch.equal(whole[:2], part)
    for seed, step in ((2, 5), (1, 6)):
        other, _ = augment(images, targets, config, seed=seed, step=step)
        assert not torch.equal(other, whole)


def test_zoom_keeps_distributions_and_marks_pixels_next_to_ignored_ones() -> None:
    images, targets = _pair(32)
    targets[:, :, 4, 4] = 0.0
    config = AugmentConfig(dihedral=False, zoom_share=1.0, zoom_max=3.0)
    x, y = augment(images, targets, config, seed=0, step=0)
    assert x.min() >= -1
    assert x.max() <= 1
    assert float(y.min()) >= 0
    assert float(y.sum(1).max()) < 1 + 1e-5
    mask = labelled(y)
    assert 0 < float((mask == 0).float().mean()) < 0.5
    torch.testing.assert_close(y.sum(1)[mask == 1], torch.ones(int(mask.sum())), atol=1e-3, rtol=0)


def test_brightness_stays_in_range_and_off_is_identity() -> None:
    images, targets = _pair(4)
    still, same = augment(images, targets, AugmentConfig(dihedral=False, zoom_share=0, gain=0, gamma=0), seed=0, step=0)
    torch.testing.assert_close(still, images)
    assert torch.equal(same, targets)
    bright, _ = augment(
        images, targets, AugmentConfig(dihedral=False, zoom_share=0, gain=1.0, gamma=1.0), seed=0, step=0
    )
    assert bright.min() >= -1
    assert bright.max() <= 1
    assert not torch.equal(bright, images)


def test_oblong_tiles_keep_their_shape() -> None:
    images, targets = torch.rand(16, 1, 4, 6) * 2 - 1, torch.full((16, 2, 4, 6), 0.5)
    x, y = augment(images, targets, AugmentConfig(), seed=0, step=0)
    assert x.shape == images.shape
    assert y.shape == targets.shape
