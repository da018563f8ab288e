"""Augmentation moves images and targets alike and depends on (seed, step, row) alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from dakter.students.augment import AugmentConfig, augment, second_view, warp
from dakter.students.losses import labelled, one_hot
from dakter.turns import NUM_TURNS, turn

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


def test_a_second_view_is_turned_like_its_geometry_says() -> None:
    images, targets = _pair(1)
    turns = {tuple(turn(images, which).flatten().tolist()): which for which in range(NUM_TURNS)}
    seen = set()
    for step in range(80):
        view, theta = second_view(images, QUIET, seed=3, step=step)
        which = turns[tuple(view.round().flatten().tolist())]
        torch.testing.assert_close(view, turn(images, which), atol=1e-5, rtol=0)
        torch.testing.assert_close(warp(targets, theta), turn(targets, which), atol=1e-5, rtol=0)
        seen.add(which)
    assert len(seen) == NUM_TURNS


def test_a_second_view_is_cropped_within_the_image_and_repeats() -> None:
    identity = torch.eye(2, 3)[None].expand(16, 2, 3)
    places = F.affine_grid(identity, [16, 1, 12, 8], align_corners=False)  # (x, y) of every pixel
    x = places[..., 0][:, None].contiguous()  # an image that tells where it is
    config = AugmentConfig(zoom_share=1.0, zoom_max=3.0, gain=0.0, gamma=0.0)
    view, theta = second_view(x, config, seed=0, step=4)
    assert view.shape == x.shape
    pointed = F.affine_grid(theta, [16, 1, 12, 8], align_corners=False)
    assert float(pointed.abs().max()) < 1
    inner = pointed[..., 0].clamp(-0.875, 0.875)[:, None]  # beyond the outermost centres the border goes on
    torch.testing.assert_close(view, inner, atol=1e-5, rtol=0)
    sizes = theta[:, 0, :2].norm(dim=1)
    assert 1 / 3 < float(sizes.min()) < 0.6 < float(sizes.max()) < 1
    again, _ = second_view(x[:3], config, seed=0, step=4)
    assert torch.equal(view[:3], again)
    assert not torch.equal(view, second_view(x, config, seed=0, step=5)[0])
    bright, same = second_view(x, config.model_copy(update={"gain": 1.0}), seed=0, step=4)
    assert torch.equal(same, theta)
    assert not torch.equal(bright, view)
