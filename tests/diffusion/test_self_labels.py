from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusion_toys import TINY, TRAIN, kept_checkpoints, random_pipeline, run_fit, toy_data, unpack

from dakter.diffusion.batch import Batch, assemble, plan
from dakter.diffusion.network import NetworkConfig
from dakter.diffusion.schedule import DiffusionConfig, add_noise
from dakter.diffusion.self_labels import answers, count_asked
from dakter.diffusion.train_config import LabelViews, SelfLabels, TrainConfig
from dakter.errors import ConfigError
from dakter.views import enlarge

DATA = toy_data()
VIEWS = LabelViews(zoom_share=1.0, zoom_max=2.0, gain=0.3, gamma=0.3)
ASKING = TrainConfig.model_validate(
    {**TRAIN.model_dump(), "label_views": VIEWS, "self_labels": SelfLabels(share=0.5, begin=2)}
)


def _batch(num_asked: int = 2, views: LabelViews | None = VIEWS, rank: int = 0, world: int = 1) -> Batch:
    rows = plan(
        DiffusionConfig(),
        DATA,
        batch_size=7,
        num_unlabelled=4,
        dihedral=True,
        seed=0,
        step=1,
        num_asked=num_asked,
    )
    return assemble(rows, DATA, seed=0, step=1, label_views=views, rank=rank, world=world)


def test_the_last_unlabelled_rows_ask_and_every_other_row_is_as_before() -> None:
    asking, plain = _batch(), _batch(num_asked=0)
    assert (asking.asked, asking.num_asked) == ((5, 6), 2)
    assert asking.t_x_B[5:].tolist() == pytest.approx([DiffusionConfig().clean_t] * 2)
    assert asking.t_y_B[5:].tolist() == [1.0, 1.0]
    assert not asking.on_image_B[5:].any()
    assert not asking.on_label_B[5:].any()
    assert not torch.equal(asking.x_BCHW[5:], asking.plain_ACHW), "the network sees another view"
    assert torch.equal(asking.plain_ACHW, _batch(views=None).x_BCHW[5:])
    for name in ("x_BCHW", "labels_BHW", "t_x_B", "t_y_B", "on_image_B", "on_label_B"):
        assert torch.equal(getattr(asking, name)[:5], getattr(plain, name)[:5]), name
    assert plain.asked == ()
    second = _batch(rank=1, world=2)
    assert (second.asked, second.num_asked) == ((2,), 2)
    assert torch.equal(second.plain_ACHW, asking.plain_ACHW[:1])


def test_the_average_answers_for_the_plain_image_and_the_answer_is_cropped_as_the_view() -> None:
    averaged = random_pipeline().unet
    network = random_pipeline(network=NetworkConfig.model_validate({**TINY.model_dump(), "dropout": 0.5})).unet
    for value in network.parameters():
        value.data.zero_()
    batch = _batch()
    network.train()
    found = answers(network, averaged.state_dict(), batch, temperature=0.5)
    assert network.training, "left as it was"
    assert not found[:5].any()
    levels = batch.t_x_B[5:]
    x = add_noise(batch.plain_ACHW, batch.noise_x_BCHW[5:], levels)
    with torch.no_grad():
        logits = averaged.eval()(x, batch.noise_y_BKHW[5:], levels, torch.ones(2)).logits
    sharp = logits.softmax(1) ** 2
    whole = sharp / sharp.sum(1, keepdim=True)
    assert all(batch.crops)
    wanted = torch.stack([enlarge(soft, crop) for soft, crop in zip(whole, batch.crops, strict=True) if crop])
    assert torch.allclose(found[5:], wanted, atol=1e-5)
    assert torch.allclose(found[5:].sum(1), torch.ones(2, 16, 16), atol=1e-5)
    assert not answers(network, averaged.state_dict(), _batch(num_asked=0), 1.0).any()


def test_answers_teach_from_their_step_on() -> None:
    kept = {
        begin: run_fit(ASKING.model_copy(update={"log_every": 1, "self_labels": SelfLabels(share=0.5, begin=begin)}))
        for begin in (2, 6)
    }
    losses = {begin: [record["self_label_loss"] for record in result.history] for begin, result in kept.items()}
    assert losses[2][:2] == [0.0, 0.0]
    assert min(losses[2][2:]) > 0
    assert losses[6] == [0.0] * 6, "6 steps in all"
    assert kept[2].history[3]["image_loss"] != kept[6].history[3]["image_loss"]
    assert kept[2].history[1]["image_loss"] == kept[6].history[1]["image_loss"]
    last = kept[2].history[-1]
    assert last["loss"] == pytest.approx(last["image_loss"] + last["label_loss"] + last["self_label_loss"])


def test_a_weight_of_zero_teaches_nothing() -> None:
    def weights(config: SelfLabels) -> list[torch.Tensor]:
        return list(run_fit(ASKING.model_copy(update={"self_labels": config})).pipeline.unet.state_dict().values())

    never, idle, taught = (
        weights(SelfLabels(share=0.5, begin=begin, weight=weight)) for begin, weight in ((6, 1.0), (2, 0.0), (2, 1.0))
    )
    assert all(torch.equal(a, b) for a, b in zip(never, idle, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(never, taught, strict=True))


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    kept: list[dict[str, bytes]] = []
    whole = run_fit(ASKING, on_checkpoint=kept_checkpoints(kept))
    resumed = run_fit(ASKING, resume=unpack(kept[0], tmp_path / "at-3"))
    name = "self_label_loss"
    assert [record[name] for record in resumed.history] == [record[name] for record in whole.history]
    for name, value in whole.pipeline.unet.state_dict().items():
        assert torch.equal(resumed.pipeline.unet.state_dict()[name], value), name


def test_what_cannot_ask_is_refused_and_without_unlabelled_images_nothing_asks() -> None:
    half = SelfLabels(share=0.5)
    assert count_asked(half, DiffusionConfig(), 4) == 2
    assert count_asked(half, DiffusionConfig(), 0) == 0
    assert count_asked(SelfLabels(), DiffusionConfig(label_loss="mse"), 4) == 0
    with pytest.raises(ConfigError, match=r"self_labels\.share is 0\.5 with diffusion\.label_loss mse"):
        count_asked(half, DiffusionConfig(label_loss="mse"), 4)
    with pytest.raises(ConfigError, match=r"0\.1 of 4 unlabelled rows.*raise it to 0\.25"):
        count_asked(SelfLabels(share=0.1), DiffusionConfig(), 4)
    alone = replace(DATA, unlabelled=None)
    assert "self_label_loss" not in run_fit(ASKING, data=alone).history[-1]
