from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusion_toys import toy_data

from dakter.diffusion.batch import assemble, count_unlabelled, plan, turned
from dakter.diffusion.schedule import DiffusionConfig
from dakter.diffusion.train_config import LabelViews
from dakter.errors import ConfigError
from dakter.schema import IGNORE, to_model

DATA = toy_data()


def _rows(step: int, config: DiffusionConfig | None = None, batch_size: int = 8):  # type: ignore[no-untyped-def]
    return plan(
        config or DiffusionConfig(), DATA, batch_size=batch_size, num_unlabelled=3, dihedral=True, seed=0, step=step
    )


def test_every_image_comes_once_an_epoch() -> None:
    seen = [row.index for step in range(7) for row in _rows(step) if row.labelled]
    assert len(seen) == 35
    for epoch in range(5):
        assert sorted(seen[7 * epoch : 7 * epoch + 7]) == list(range(7))
    assert seen[:7] != seen[7:14]


def test_the_eight_turns_are_all_different_and_shared_by_image_and_label() -> None:
    square = np.arange(9).reshape(3, 3)
    assert len({turned(square, k).tobytes() for k in range(8)}) == 8
    rows = [row for step in range(4) for row in _rows(step) if row.labelled]
    assert len({row.turn for row in rows}) > 4
    batch = assemble(rows, DATA, seed=0, step=0)
    dark = batch.x_BCHW[:, 0] < -0.5  # the squares of class 1 are the only dark pixels
    assert torch.equal(dark, batch.labels_BHW == 1)
    first = rows[0]
    assert torch.equal(batch.x_BCHW[0], to_model(turned(DATA.images[first.index], first.turn).copy()))


def test_ranks_share_the_rows_of_one_batch() -> None:
    whole = assemble(_rows(2), DATA, seed=0, step=2)
    parts = [assemble(_rows(2), DATA, seed=0, step=2, rank=rank, world=2) for rank in range(2)]
    for name in ("x_BCHW", "labels_BHW", "noise_x_BCHW", "noise_y_BKHW", "t_x_B", "on_label_B"):
        for rank, part in enumerate(parts):
            assert torch.equal(getattr(part, name), getattr(whole, name)[rank::2])
    assert {part.num_label for part in parts} == {whole.num_label}


def test_unlabelled_rows_carry_no_label_and_clean_inputs_no_loss() -> None:
    config = DiffusionConfig(share_equal=0, share_independent=0, share_image_clean=0.5, share_label_clean=0.5)
    rows = [row for step in range(6) for row in _rows(step, config)]
    batch = assemble(rows, DATA, seed=0, step=0)
    for i, row in enumerate(rows):
        if not row.labelled:
            assert bool((batch.labels_BHW[i] == IGNORE).all())
            assert (row.t_y, row.on_label, row.on_image) == (1.0, False, True)
        elif row.t_x == config.clean_t:
            assert (row.t_y, row.on_label, row.on_image) == (1.0, True, False)
        else:
            assert (row.t_y, row.on_label, row.on_image) == (config.clean_t, False, True)
    assert batch.num_label == sum(row.on_label for row in rows) > 0


def test_the_joint_model_has_no_place_for_unlabelled_images() -> None:
    with pytest.raises(ConfigError, match="unlabelled_share"):
        count_unlabelled(DiffusionConfig(mode="joint"), DATA, 8, 0.5)
    with pytest.raises(ConfigError, match="at least one labelled"):
        count_unlabelled(DiffusionConfig(), DATA, 2, 0.9)
    assert count_unlabelled(DiffusionConfig(), DATA, 8, 0.5) == 4
    assert count_unlabelled(DiffusionConfig(), toy_data(unlabelled=False), 8, 0.5) == 0


VIEWS = LabelViews(zoom_share=1.0, zoom_max=3.0, gain=0.3, gamma=0.3)


def test_other_views_are_of_rows_that_ask_for_the_label_outright_and_of_no_other() -> None:
    config = DiffusionConfig(share_equal=0.25, share_independent=0.25, share_image_clean=0.25, share_label_clean=0.25)
    rows = [row for step in range(12) for row in _rows(step, config)]
    plain, viewed = (assemble(rows, DATA, seed=0, step=0, label_views=views) for views in (None, VIEWS))
    asked = [row.labelled and (row.t_x, row.t_y) == (config.clean_t, 1.0) for row in rows]
    assert 0 < sum(asked) < len(rows)
    for i, asks in enumerate(asked):
        assert torch.equal(viewed.x_BCHW[i], plain.x_BCHW[i]) != asks
        if not asks:
            assert torch.equal(viewed.labels_BHW[i], plain.labels_BHW[i])
    assert torch.equal(viewed.noise_x_BCHW, plain.noise_x_BCHW)
    assert float(viewed.x_BCHW.abs().max()) <= 1


def test_a_view_moves_image_and_label_alike_and_makes_no_new_class() -> None:
    config = DiffusionConfig(share_equal=0, share_independent=0, share_image_clean=1, share_label_clean=0)
    rows = [row for step in range(6) for row in _rows(step, config) if row.labelled]
    labels = np.where(DATA.labels == 1, 1, IGNORE).astype(np.uint8)
    data = replace(DATA, images=np.where(labels == 1, 0, 255).astype(np.uint8)[:, None], labels=labels)
    batch = assemble(rows, data, seed=0, step=0, label_views=LabelViews(zoom_share=1.0, zoom_max=3.0))
    assert set(np.unique(batch.labels_BHW.numpy()).tolist()) == {1, IGNORE}
    inside = batch.x_BCHW[:, 0].abs() == 1  # edges of enlarged images are blurred
    assert float(inside.float().mean()) > 0.5
    assert torch.equal((batch.x_BCHW[:, 0] < 0)[inside], (batch.labels_BHW == 1)[inside])
    shares = {float((row == 1).float().mean()) for row in batch.labels_BHW}
    assert len(shares) > len({float((row == 1).mean()) for row in labels})


def test_a_view_depends_on_seed_step_and_row_alone() -> None:
    config = DiffusionConfig(share_equal=0, share_independent=0, share_image_clean=1, share_label_clean=0)
    rows = _rows(2, config)
    whole = assemble(rows, DATA, seed=0, step=2, label_views=VIEWS)
    part = assemble(rows, DATA, seed=0, step=2, label_views=VIEWS, rank=1, world=2)
    assert torch.equal(part.x_BCHW, whole.x_BCHW[1::2])
    assert torch.equal(part.labels_BHW, whole.labels_BHW[1::2])
    for seed, step in ((1, 2), (0, 3)):
        assert not torch.equal(assemble(rows, DATA, seed=seed, step=step, label_views=VIEWS).x_BCHW, whole.x_BCHW)
