from __future__ import annotations

import math
import socket
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from diffusion_toys import PLAIN, TINY, TRAIN, kept_checkpoints, run_fit, toy_data, unpack
from safetensors.torch import load_file, save_file

from dakter.diffusion import loss, trainer
from dakter.diffusion.balance import class_weights
from dakter.diffusion.batch import assemble, plan
from dakter.diffusion.fit import FitResult, checkpoint_pipeline
from dakter.diffusion.network import JointOutput, JointUNet, NetworkConfig, describe
from dakter.diffusion.schedule import DiffusionConfig
from dakter.diffusion.train_config import LabelViews, MeanTeacher, learning_rate
from dakter.errors import ConfigError, ConflictError, DakterError, DataError, Stopped
from dakter.schema import to_model


def _weights(result: FitResult) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in result.pipeline.unet.state_dict().items()}


def _losses(result: FitResult) -> list[tuple[float, float, float]]:
    return [(r["step"], r["image_loss"], r["label_loss"]) for r in result.history]


@pytest.mark.parametrize("share", [0.5, 0.0])
def test_the_model_keeps_descriptors_of_every_image_that_it_learned_from(share: float) -> None:
    data = toy_data()
    assert data.unlabelled is not None
    result = run_fit(TRAIN.model_copy(update={"unlabelled_share": share}), data=data)
    table = result.pipeline.unet.table
    assert table is not None
    seen = np.concatenate([data.images, data.unlabelled]) if share else data.images
    distances = torch.cdist(table, describe(to_model(seen)))
    assert float(distances.min(1).values.max()) < 1e-5, "each row is that of an image"
    counts = torch.bincount(distances.argmin(1), minlength=len(seen))
    assert counts.max() - counts.min() <= 1, "and each image has its part"


def test_training_tells_of_the_clean_image_where_it_is_to_be_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    told, forward = list[torch.Tensor](), JointUNet.forward

    def listening(self: JointUNet, *inputs: torch.Tensor) -> JointOutput:
        told.append(inputs[4])
        return forward(self, *inputs)

    monkeypatch.setattr(JointUNet, "forward", listening)
    data, views = toy_data(), LabelViews(gain=1.0)
    run_fit(TRAIN.model_copy(update={"steps": 1, "batch_size": 32, "label_views": views}), data=data)
    (first,) = told
    about: dict[str, Any] = {"batch_size": 32, "num_unlabelled": 16, "dihedral": True}
    rows = plan(DiffusionConfig(), data, seed=TRAIN.seed, step=0, **about)
    batch = assemble(rows, data, seed=TRAIN.seed, step=0, label_views=views)
    drawn = torch.tensor([row.t_x == row.t_y or row.t_y == 0.01 or not row.labelled for row in rows])
    given = torch.tensor([row.t_x == 0.01 for row in rows])
    assert given.any()
    assert 16 < drawn.sum() < 32 - given.sum(), "rows of all kinds"
    assert torch.allclose(first[drawn], describe(batch.x_BCHW)[drawn], atol=1e-6)
    assert not first[~drawn].any()


def test_golden_losses_of_a_tiny_run() -> None:
    result = run_fit(TRAIN, network=PLAIN)
    found = np.array(_losses(result))
    golden = np.array(GOLDEN)
    assert np.allclose(found, golden, rtol=2e-3), found.tolist()
    total = sum(float(value.double().abs().sum()) for value in _weights(result).values())
    assert total == pytest.approx(GOLDEN_WEIGHTS, rel=2e-3)


def test_learning_lowers_both_losses() -> None:
    train = TRAIN.model_copy(update={"steps": 80, "batch_size": 8, "log_every": 20, "checkpoint_every": 1000})
    history = run_fit(train, data=toy_data(unlabelled=False)).history
    assert min(record["image_loss"] for record in history[2:]) < 0.95 * history[0]["image_loss"]
    assert history[-1]["label_loss"] < 0.85 * history[0]["label_loss"]


@pytest.mark.parametrize(
    "diffusion",
    [
        {"objective": "x0", "min_snr_gamma": 5.0, "mode": "joint"},
        {"label_loss": "mse", "b": 1.0, "mode": "joint"},
    ],
)
def test_the_other_objectives_train_too(diffusion: dict[str, Any]) -> None:
    result = run_fit(diffusion=DiffusionConfig.model_validate(diffusion), data=toy_data(unlabelled=False))
    assert all(math.isfinite(record["loss"]) for record in result.history)
    assert torch.allclose(
        result.pipeline(batch_size=1, num_inference_steps=2).soft_labels.sum(1), torch.ones(1, 16, 16)
    )


def test_rare_classes_weigh_as_their_share_of_the_labels_says(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def listening(*inputs: Any, **rest: Any) -> loss.Losses:
        asked.append(rest["weight_K"])
        return loss.losses(*inputs, **rest)

    monkeypatch.setattr(trainer, "losses", listening)
    data, once = toy_data(), TRAIN.model_copy(update={"steps": 1})
    weighed, plain = (
        run_fit(once, diffusion=DiffusionConfig(rare_class_power=power), data=data, network=PLAIN) for power in (0.5, 0)
    )
    assert torch.equal(asked[0], class_weights(data.labels, len(data.class_table), 0.5))  # type: ignore[arg-type]
    assert asked[1] is None
    assert _losses(weighed) != _losses(plain)


@pytest.mark.parametrize("network", [PLAIN, TINY])
def test_a_resumed_run_equals_an_uninterrupted_one(network: NetworkConfig, tmp_path: Path) -> None:
    kept: list[dict[str, bytes]] = []
    whole = run_fit(TRAIN, network=network, on_checkpoint=kept_checkpoints(kept))
    assert len(kept) == 2  # after step 3, within a log window, and at the end
    folder = unpack(kept[0], tmp_path / "at-3")
    resumed = run_fit(TRAIN, network=network, resume=folder)
    assert _losses(resumed) == _losses(whole)
    for name, value in _weights(resumed).items():
        assert torch.equal(value, _weights(whole)[name]), name
    images = checkpoint_pipeline(unpack(kept[1], tmp_path / "at-6"))(batch_size=1, num_inference_steps=2).images
    assert torch.equal(images, whole.pipeline(batch_size=1, num_inference_steps=2).images)


def test_a_stop_is_obeyed_after_a_checkpoint(tmp_path: Path) -> None:
    kept: list[dict[str, bytes]] = []
    asked = iter([False, True])
    with pytest.raises(Stopped, match="after step 2 of 6"):
        run_fit(TRAIN, on_checkpoint=kept_checkpoints(kept), should_stop=lambda: next(asked))
    resumed = run_fit(TRAIN, resume=unpack(kept[0], tmp_path / "at-2"))
    assert _losses(resumed) == _losses(run_fit(TRAIN))


def test_a_checkpoint_of_other_settings_or_data_is_refused(tmp_path: Path) -> None:
    kept: list[dict[str, bytes]] = []
    run_fit(TRAIN, on_checkpoint=kept_checkpoints(kept))
    folder = unpack(kept[0], tmp_path / "at-3")
    with pytest.raises(ConflictError, match=r"train\.learning_rate: 0\.003 stands, 0\.1 asked for"):
        run_fit(TRAIN.model_copy(update={"learning_rate": 0.1}), resume=folder)
    with pytest.raises(ConflictError, match=r"data\.sha256"):
        run_fit(TRAIN, resume=folder, data=toy_data(unlabelled=False))
    run_fit(TRAIN.model_copy(update={"log_every": 5}), resume=folder)  # decides nothing of the weights


def test_a_loss_that_is_not_finite_stops_at_once() -> None:
    with pytest.raises(DakterError, match=r"step 0.*learning_rate"):
        run_fit(diffusion=DiffusionConfig(image_weight=1e38, label_weight=1e38))


def test_unfit_data_is_refused() -> None:
    data = toy_data()
    wide = type(data)(
        **{**vars(data), "images": np.zeros((7, 1, 16, 32), np.uint8), "labels": np.zeros((7, 16, 32), np.uint8)}
    )
    with pytest.raises(DataError, match="square"):
        run_fit(data=wide)
    with pytest.raises(ConfigError, match="multiples of 4 px"):
        run_fit(data=toy_data(size=18))


def test_learning_rate_warms_up_and_decays() -> None:
    rates = [learning_rate(TRAIN, step) / TRAIN.learning_rate for step in range(TRAIN.steps)]
    assert rates[:3] == pytest.approx([0.5, 1.0, 1.0])
    assert all(a > b for a, b in pairwise(rates[2:]))


# Of 5 rows 4 are unlabelled and 3 of these taught by the mean teacher: 2 by one worker, 1 by the other.
_TAUGHT = {"mean_teacher": MeanTeacher(share=0.75, start_step=1), "label_views": LabelViews(gain=1.0, zoom_share=1.0)}
_UNEVEN = TRAIN.model_copy(
    update={"steps": 4, "batch_size": 5, "validate_every": 2, "keep": "best", "unlabelled_share": 0.8, **_TAUGHT}
)


def _all_losses(result: FitResult) -> torch.Tensor:
    parts = ("step", "loss", "image_loss", "label_loss", "consistency_loss")
    return torch.tensor([[record[part] for part in parts] for record in result.history], dtype=torch.float64)


def _curve(result: FitResult) -> torch.Tensor:
    return torch.tensor([list(row.values()) for row in result.curve], dtype=torch.float64)


def _train_rank(rank: int, world: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    calls: list[int] = []
    result = run_fit(_UNEVEN, on_checkpoint=lambda path, metrics: calls.append(len(list(path.iterdir()))))
    more = {"losses": _all_losses(result), "curve": _curve(result), "calls": torch.tensor(calls)}
    save_file({**_weights(result), **more}, f"{folder}/{rank}.safetensors")
    dist.destroy_process_group()


def test_two_workers_train_as_one_though_their_rows_are_uneven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    second_rank = mp.get_context("spawn").Process(target=_train_rank, args=(1, 2, port, str(tmp_path)))
    second_rank.start()
    try:
        _train_rank(0, 2, port, str(tmp_path))
        second_rank.join(120)
    finally:
        second_rank.kill()
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in range(2))
    alone = run_fit(_UNEVEN)
    assert 0.3 < alone.history[-1]["consistency_loss"] < 0.8, "nats a pixel: two classes, hardly told apart so far"
    assert (first.pop("calls").tolist(), second.pop("calls").tolist()) == ([5, 5], [0, 0])
    assert torch.allclose(first.pop("losses"), _all_losses(alone), rtol=1e-4)
    second.pop("losses")
    curve = first.pop("curve")
    assert torch.equal(curve, second.pop("curve")), "every rank chooses by the same figures"
    assert torch.allclose(curve, _curve(alone), rtol=1e-3)
    for name, value in _weights(alone).items():
        assert torch.equal(first[name], second[name])
        assert torch.allclose(first[name], value, rtol=1e-3, atol=2e-4), name


def test_every_worker_needs_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda: 5)
    with pytest.raises(ConfigError, match="row for each of 5 workers"):
        run_fit(TRAIN, network=TINY)


def test_a_checkpoint_out_of_turn_changes_nothing_and_is_gone_on_from(tmp_path: Path) -> None:
    kept: list[dict[str, bytes]] = []
    steps: list[int] = []
    run_fit(
        TRAIN,
        on_checkpoint=kept_checkpoints(kept),
        should_checkpoint=lambda: steps[-1] == 2,
        on_step=steps.append,
    )
    assert steps == [1, 2, 3, 4, 5, 6]
    assert len(kept) == 3  # after step 2 as asked, after 3 and at the end
    assert _losses(run_fit(TRAIN, resume=unpack(kept[0], tmp_path / "at-2"))) == _losses(run_fit(TRAIN))


# (steps done, image loss, label loss) and the sum of all absolute weights, one thread, fp32
GOLDEN = [(2, 0.866283, 0.680372), (4, 0.749858, 0.586827), (6, 0.564939, 0.523058)]
GOLDEN_WEIGHTS = 1125.58758
