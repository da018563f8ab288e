from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from diffusion_toys import TINY, TRAIN, kept_checkpoints, random_pipeline, run_fit, toy_data, unpack

from dakter.captured import Captured
from dakter.diffusion import trainer
from dakter.diffusion.batch import Batch, assemble, plan
from dakter.diffusion.fit import FitResult
from dakter.diffusion.loss import soft_label_loss_B
from dakter.diffusion.mean_teacher import answers, count_taught, teacher_probabilities
from dakter.diffusion.network import NetworkConfig
from dakter.diffusion.schedule import DiffusionConfig, add_noise
from dakter.diffusion.train_config import LabelViews, MeanTeacher, TrainConfig
from dakter.diffusion.validation import check_choice
from dakter.errors import ConfigError
from dakter.views import enlarge

DATA = toy_data()
VIEWS = LabelViews(zoom_share=1.0, zoom_max=2.0, gain=0.3, gamma=0.3)
TAUGHT = TrainConfig.model_validate(
    {**TRAIN.model_dump(), "label_views": VIEWS, "mean_teacher": MeanTeacher(share=0.5, start_step=2, weight=0.5)}
)


def _batch(num_taught: int = 2, views: LabelViews | None = VIEWS, rank: int = 0, world: int = 1) -> Batch:
    rows = plan(
        DiffusionConfig(),
        DATA,
        batch_size=7,
        num_unlabelled=4,
        dihedral=True,
        seed=0,
        step=1,
        num_taught=num_taught,
    )
    return assemble(rows, DATA, seed=0, step=1, label_views=views, rank=rank, world=world)


def test_the_last_unlabelled_rows_are_taught_and_every_other_row_is_as_before() -> None:
    taught, plain = _batch(), _batch(num_taught=0)
    assert (taught.taught, taught.num_taught) == ((5, 6), 2)
    assert taught.t_x_B[5:].tolist() == pytest.approx([DiffusionConfig().clean_t] * 2)
    assert taught.t_y_B[5:].tolist() == [1.0, 1.0]
    assert not taught.on_image_B[5:].any()
    assert not taught.on_label_B[5:].any()
    assert not torch.equal(taught.x_BCHW[5:], taught.plain_TCHW), "the network sees another view"
    assert torch.equal(taught.plain_TCHW, _batch(views=None).x_BCHW[5:])
    for name in ("x_BCHW", "labels_BHW", "t_x_B", "t_y_B", "on_image_B", "on_label_B"):
        assert torch.equal(getattr(taught, name)[:5], getattr(plain, name)[:5]), name
    assert plain.taught == ()
    second = _batch(rank=1, world=2)
    assert (second.taught, second.num_taught) == ((2,), 2)
    assert torch.equal(second.plain_TCHW, taught.plain_TCHW[:1])


def test_the_average_answers_for_the_plain_image_and_the_answer_is_cropped_as_the_view() -> None:
    averaged = random_pipeline().unet
    network = random_pipeline(network=NetworkConfig.model_validate({**TINY.model_dump(), "dropout": 0.5})).unet
    for value in network.parameters():
        value.data.zero_()
    batch = _batch()
    network.train()
    teacher = partial(answers, network, averaged.state_dict(), temperature=0.5)
    found = teacher_probabilities(teacher, batch)
    assert network.training, "left as it was"
    assert not found[:5].any()
    levels = batch.t_x_B[5:]
    x = add_noise(batch.plain_TCHW, batch.noise_x_BCHW[5:], levels)
    with torch.no_grad():
        told = torch.zeros(2, 3)
        logits = averaged.eval()(x, batch.noise_y_BKHW[5:], levels, torch.ones(2), told).logits
    sharp = logits.softmax(1) ** 2
    whole = sharp / sharp.sum(1, keepdim=True)
    assert all(batch.crops)
    wanted = torch.stack([enlarge(soft, crop) for soft, crop in zip(whole, batch.crops, strict=True) if crop])
    assert torch.allclose(found[5:], wanted, atol=1e-5)
    assert torch.allclose(found[5:].sum(1), torch.ones(2, 16, 16), atol=1e-5)
    assert not teacher_probabilities(teacher, _batch(num_taught=0)).any()


def test_consistency_is_a_mean_over_taught_rows_in_nats() -> None:
    logits = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    soft = logits.softmax(1)
    entropy = -(soft * soft.log()).sum(1).mean((1, 2))
    assert torch.allclose(soft_label_loss_B(logits, soft), entropy)
    assert soft_label_loss_B(logits, torch.zeros_like(soft)).tolist() == [0.0, 0.0, 0.0]
    sure = torch.stack([torch.ones(3, 4, 4), torch.zeros(3, 4, 4)], 1)
    assert torch.allclose(soft_label_loss_B(logits, sure), -soft[:, 0].log().mean((1, 2)))


def _taught(**changes: object) -> FitResult:
    teacher = MeanTeacher.model_validate({**TAUGHT.mean_teacher.model_dump(), **changes})
    return run_fit(TAUGHT.model_copy(update={"log_every": 1, "mean_teacher": teacher}))


def test_the_teacher_teaches_from_its_step_on() -> None:
    early, late = _taught(), _taught(start_step=4)
    for result, start in ((early, 2), (late, 4)):
        assert [r["step"] for r in result.history if "consistency_loss" in r] == list(range(start + 1, 7))
    assert early.history[:2] == _without_time(early, late.history[:2])
    assert early.history[2]["image_loss"] != late.history[2]["image_loss"], "until then its rows learn x"
    last = early.history[-1]
    assert 0.3 < last["consistency_loss"] < 0.8, "nats a pixel: two classes, hardly told apart so far"
    parts = last["image_loss"] + last["label_loss"] + TAUGHT.mean_teacher.weight * last["consistency_loss"]
    assert last["loss"] == pytest.approx(parts)


def _without_time(like: FitResult, rows: list[dict[str, float]]) -> list[dict[str, float]]:
    timed = ("samples_per_second", "data_wait_share")
    return [{**row, **{key: own[key] for key in timed}} for row, own in zip(rows, like.history, strict=False)]


def test_a_weight_of_zero_teaches_nothing() -> None:
    idle, other, taught = (
        list(result.pipeline.unet.state_dict().values())
        for result in (_taught(weight=0.0), _taught(weight=0.0, temperature=0.1), _taught())
    )
    assert all(torch.equal(a, b) for a, b in zip(idle, other, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(idle, taught, strict=True))


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    kept: list[dict[str, bytes]] = []
    whole = run_fit(TAUGHT, on_checkpoint=kept_checkpoints(kept))
    resumed = run_fit(TAUGHT, resume=unpack(kept[0], tmp_path / "at-3"))
    assert _without_time(whole, resumed.history) == whole.history
    for name, value in whole.pipeline.unet.state_dict().items():
        assert torch.equal(resumed.pipeline.unet.state_dict()[name], value), name


def test_training_in_bf16_is_taught_too() -> None:
    half = run_fit(TAUGHT.model_copy(update={"precision": "bf16"}))
    whole = run_fit(TAUGHT)
    assert half.history[-1]["consistency_loss"] == pytest.approx(whole.history[-1]["consistency_loss"], rel=0.1)


def test_a_teacher_without_pupils_is_refused() -> None:
    half = MeanTeacher(share=0.5)
    assert count_taught(half, 4) == 2
    assert count_taught(half, 0) == 0
    with pytest.raises(ConfigError, match=r"0\.1 of 4 unlabelled rows.*raise it to 0\.25"):
        count_taught(MeanTeacher(share=0.1), 4)
    with pytest.raises(ConfigError, match=r"mean_teacher\.share is 0\.5 with diffusion\.label_loss mse"):
        check_choice(TAUGHT, DiffusionConfig(label_loss="mse"))
    for changes, words in (
        ({"unlabelled_share": 0.0}, r"mean_teacher\.share is 0\.5 with unlabelled_share 0"),
        ({"steps": 2}, r"start_step is 2 with 2 steps"),
    ):
        with pytest.raises(ValueError, match=words):
            TrainConfig.model_validate({**TAUGHT.model_dump(), **changes})


def test_without_unlabelled_images_there_is_no_teacher_and_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    alone = replace(DATA, unlabelled=None)
    with caplog.at_level(logging.WARNING, "dakter"):
        taught = run_fit(TAUGHT, data=alone)
    assert "train.mean_teacher has no unlabelled image to label" in caplog.text
    assert "consistency_loss" not in taught.history[-1]
    plain = run_fit(TAUGHT.model_copy(update={"mean_teacher": MeanTeacher()}), data=alone)
    for name, value in plain.pipeline.unet.state_dict().items():
        assert torch.equal(taught.pipeline.unet.state_dict()[name], value), name


@pytest.mark.gpu
def test_on_a_gpu_the_teacher_answers_from_a_graph_what_it_answers_without(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    longer = TAUGHT.model_copy(update={"steps": 12, "log_every": 1})  # both graphs are captured after three eager steps
    with caplog.at_level(logging.WARNING, "dakter"):
        captured = run_fit(longer, device="cuda").history
    assert "not captured" not in caplog.text
    monkeypatch.setattr(trainer, "Captured", lambda step, weights, capture: Captured(step, weights, capture=False))
    plain = run_fit(longer, device="cuda").history
    for key in ("loss", "consistency_loss"):
        told = [[row[key] for row in history if key in row] for history in (captured, plain)]
        assert len(told[0]) >= 10
        assert told[0] == pytest.approx(told[1], rel=1e-3), key
