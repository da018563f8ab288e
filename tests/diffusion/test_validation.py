"""Looks at val while training runs: what they score, which weights they keep, and when they end it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusion_toys import TRAIN, kept_checkpoints, run_fit, toy_data, unpack

from dakter.config import load
from dakter.diffusion.batch import TrainingData
from dakter.diffusion.checkpoint import read_checkpoint
from dakter.diffusion.fit import FitResult
from dakter.diffusion.pipeline import JointDiffusionPipeline
from dakter.diffusion.schedule import DiffusionConfig
from dakter.diffusion.train_config import TrainConfig
from dakter.errors import ConfigError, DakterError, DataError, IntegrityError, Stopped
from dakter.schema import IGNORE, to_model

LOOKS = TRAIN.model_copy(update={"validate_every": 2, "validate_evaluations": 2})
BEST = LOOKS.model_copy(update={"keep": "best"})


def contradicted() -> TrainingData:
    """Val says the opposite of train: the more is learned, the worse it scores."""
    data = toy_data(unlabelled=False)
    return replace(data, val_images=data.images, val_labels=1 - data.labels)


def weights(result: FitResult) -> dict[str, torch.Tensor]:
    return dict(result.pipeline.unet.state_dict())


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_look_scores_p_of_y_given_x_on_labelled_pixels() -> None:
    told: list[dict[str, float]] = []
    data = toy_data()
    result = run_fit(LOOKS.model_copy(update={"validate_every": 4}), data=data, on_look=told.append)
    assert [row["step"] for row in result.curve] == [4, 6]  # and once at the end
    assert told == result.curve
    assert data.val_images is not None
    assert data.val_labels is not None
    for split, images, labels in (("val", data.val_images, data.val_labels), ("train", data.images, data.labels)):
        count = len(data.val_images)
        soft = result.pipeline.label(to_model(images[:count]), evaluations=2, seed=TRAIN.seed).numpy()
        known = labels[:count] != IGNORE
        assert known.sum() < known.size or split == "train"
        of_label = np.where(labels[:count] == 1, soft[:, 1], soft[:, 0])[known]
        assert result.curve[-1][f"{split}_nll"] == pytest.approx(-np.log(of_label).mean(), rel=1e-4)
        called, true = (soft[:, 1] > soft[:, 0])[known], (labels[:count] == 1)[known]
        iou = [(called & true).sum() / (called | true).sum(), (~called & ~true).sum() / (~called | ~true).sum()]
        assert result.curve[-1][f"{split}_miou"] == pytest.approx(np.mean(iou))


def test_looks_change_no_weight_and_no_checkpoint_is_refused_for_them(tmp_path: Path) -> None:
    kept: list[dict[str, bytes]] = []
    plain = run_fit(TRAIN, on_checkpoint=kept_checkpoints(kept))
    assert (plain.curve, plain.kept_step) == ([], 6)
    assert same(weights(plain), weights(run_fit(LOOKS)))
    assert same(weights(plain), weights(run_fit(LOOKS, resume=unpack(kept[0], tmp_path / "at-3"))))
    assert TRAIN.identity() == LOOKS.identity() != BEST.identity()


def test_the_weights_of_the_lowest_nll_on_val_are_kept(tmp_path: Path) -> None:
    kept: list[dict[str, bytes]] = []
    train = BEST.model_copy(update={"checkpoint_every": 2})
    result = run_fit(train, data=contradicted(), on_checkpoint=kept_checkpoints(kept))
    assert (result.steps, result.kept_step) == (6, 2)
    assert result.curve[0]["val_nll"] < result.curve[1]["val_nll"] < result.curve[2]["val_nll"]
    assert same(weights(result), read_checkpoint(unpack(kept[0], tmp_path / "at-2")).tensors["ema"])
    other = run_fit(BEST)  # here val is like train, and the last look the best
    assert other.kept_step == 6
    assert same(weights(other), weights(run_fit(TRAIN)))


def test_a_resumed_run_keeps_the_same_weights(tmp_path: Path) -> None:
    kept: list[dict[str, bytes]] = []
    whole = run_fit(BEST, data=contradicted(), on_checkpoint=kept_checkpoints(kept))
    resumed = run_fit(BEST, data=contradicted(), resume=unpack(kept[0], tmp_path / "at-3"))
    assert (resumed.curve, resumed.kept_step) == (whole.curve, 2)
    assert same(weights(resumed), weights(whole))
    altered = bytearray(kept[0]["best.safetensors"])
    altered[-5] ^= 1
    with pytest.raises(IntegrityError, match=r"best\.safetensors"):
        read_checkpoint(unpack({**kept[0], "best.safetensors": bytes(altered)}, tmp_path / "altered"))


def test_training_ends_early_when_val_gains_nothing_more(tmp_path: Path) -> None:
    kept: list[dict[str, bytes]] = []
    train = BEST.model_copy(update={"steps": 100, "patience": 2, "log_every": 50, "checkpoint_every": 100})
    ended = run_fit(train, data=contradicted(), on_checkpoint=kept_checkpoints(kept))
    assert (ended.steps, ended.kept_step) == (6, 2)  # the looks at 4 and 6 were no better
    assert [record["step"] for record in ended.history] == [6]
    asked: list[int] = []
    again = run_fit(train, data=contradicted(), resume=unpack(kept[-1], tmp_path / "end"), on_step=asked.append)
    assert asked == []
    assert same(weights(again), weights(ended))
    assert again.curve == ended.curve


def test_a_stop_at_the_early_end_is_an_end() -> None:
    train = BEST.model_copy(update={"steps": 100, "patience": 1})
    steps: list[int] = []
    arguments = {"data": contradicted(), "on_step": steps.append}
    assert run_fit(train, should_stop=lambda: steps[-1] == 4, **arguments).steps == 4
    with pytest.raises(Stopped, match="after step 2 of 100"):
        run_fit(train, should_stop=lambda: steps[-1] == 2, **arguments)


def test_a_look_that_is_not_a_number_ends_training(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = torch.full((3, 2, 16, 16), float("nan"))
    monkeypatch.setattr(JointDiffusionPipeline, "label", lambda self, images, **_: nothing[: len(images)])
    with pytest.raises(DakterError, match=r"step 2: the NLL of p\(y \| x\) on val is nan; training has diverged"):
        run_fit(BEST)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep": "best"}, r"set train\.validate_every"),
        ({"patience": 3, "validate_every": 5}, "expected keep best"),
        ({"validate_every": 0}, "greater than or equal to 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(TrainConfig, settings)


def test_looks_without_anything_to_look_at_are_refused() -> None:
    data = toy_data()
    assert data.val_labels is not None
    joint = {"diffusion": DiffusionConfig(mode="joint"), "data": toy_data(unlabelled=False)}
    assert run_fit(LOOKS, **joint).curve == []
    with pytest.raises(ConfigError, match=r"keep is best with diffusion\.mode joint; expected mode independent"):
        run_fit(BEST, **joint)
    for nothing in (None, np.full_like(data.val_labels, IGNORE)):
        with pytest.raises(ConfigError, match="no val image has a labelled pixel"):
            run_fit(LOOKS, data=replace(data, val_labels=nothing))
    with pytest.raises(DataError, match="val images are"):
        run_fit(LOOKS, data=replace(data, val_images=np.zeros((3, 1, 8, 8), np.uint8)))
