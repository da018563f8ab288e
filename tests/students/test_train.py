"""The one training routine: it learns, repeats exactly, keeps the best evaluation, and mixes batches as stated."""

from __future__ import annotations

import logging
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch

from dakter import metrics, rng
from dakter.errors import ConfigError, DataError, Stopped
from dakter.schema import IGNORE
from dakter.students.augment import AugmentConfig, warp
from dakter.students.models import StudentConfig, predict
from dakter.students.streams import SyntheticStream, array_stream, mixed_stream, spread
from dakter.students.train import (
    Evaluation,
    FitResult,
    LabelledArrays,
    StudentsConfig,
    _Batches,
    fit,
    learning_rate_factor,
    rows_of_batch,
    share_at,
)

STUDENT = StudentConfig(architecture="FPN", encoder="resnet18", learning_rate=3e-3)
COMMON = StudentsConfig(steps=12, batch_size=8, evaluate_every=4, augment=AugmentConfig(zoom_share=0.2))


def _arrays(count: int, seed: int) -> LabelledArrays:
    """Dark squares (class 1) on bright noise, 32x32."""
    draw = rng.numpy_rng(seed, "test/students")
    labels = np.zeros((count, 32, 32), np.uint8)
    for label in labels:
        top, left = draw.integers(0, 16, 2)
        label[top : top + 14, left : left + 14] = 1
    images = np.where(labels == 1, 40, 200) + draw.integers(-30, 30, labels.shape)
    return LabelledArrays(images[:, None].astype(np.uint8), labels)


TRAIN, VAL = _arrays(16, 0), _arrays(8, 1)


def _fit(student: StudentConfig = STUDENT, common: StudentsConfig = COMMON, seed: int = 0, synthetic: SyntheticStream | None = None, **more: object) -> FitResult:  # noqa: E501  # fmt: skip
    options: dict = {"on_evaluate": lambda now: None, "should_stop": lambda: False, **more}
    return fit(student, common, TRAIN, VAL, synthetic, num_classes=2, seed=seed, **options)


def test_it_learns_and_keeps_the_best_evaluation() -> None:
    seen: list[Evaluation] = []
    result = _fit(common=COMMON.model_copy(update={"steps": 24}), on_evaluate=seen.append)
    assert [now.step for now in seen] == [4, 8, 12, 16, 20, 24]
    assert result.history == [now.row() for now in seen]
    assert result.kept.val_miou == max(now.val_miou for now in seen) == seen[-1].kept_val_miou
    assert result.kept.val_miou > 0.8, result.history
    predicted = predict(result.model, VAL.images).argmax(1)
    assert metrics.miou(metrics.confusion_matrix(VAL.labels, predicted, 2)) == result.kept.val_miou
    assert result.epochs == 24 * 8 / 16


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_the_last_weights_are_kept_where_asked_whatever_val_says(decay: float) -> None:
    # Val whose labels are the wrong way round: the more is learned, the lower it scores.
    wrong = LabelledArrays(VAL.images, 1 - VAL.labels)
    kept: dict[str, tuple[FitResult, list[Evaluation]]] = {}
    for keep in ("best", "last"):
        seen: list[Evaluation] = []
        common = COMMON.model_copy(update={"steps": 24, "ema_decay": decay, "keep": keep})
        result = fit(
            STUDENT, common, TRAIN, wrong, None, num_classes=2, seed=0,
            on_evaluate=seen.append, should_stop=lambda: False,
        )  # fmt: skip
        assert [now.kept_val_miou for now in seen][-1] == result.kept.val_miou
        predicted = predict(result.model, VAL.images, COMMON.evaluate_batch).argmax(1)
        np.testing.assert_array_equal(predicted, result.kept.predictions)
        kept[keep] = result, seen
    (best, looks), (last, other) = kept["best"], kept["last"]
    assert [now.val_miou for now in looks] == [now.val_miou for now in other]
    assert last.kept.step == 24 > best.kept.step
    assert last.kept.val_miou < best.kept.val_miou
    assert [now.kept_val_miou for now in other] == [now.val_miou for now in other]
    assert "keep" not in StudentsConfig().dump()


def test_same_seed_same_student_whatever_the_global_state() -> None:
    torch.manual_seed(1)
    common = COMMON.model_copy(update={"steps": 3, "evaluate_every": 2})
    first = _fit(common=common)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    again, other = _fit(common=common), _fit(common=common, seed=1)
    assert torch.equal(state, torch.get_rng_state())
    assert first.history == again.history != other.history
    for one, two in zip(first.model.state_dict().values(), again.model.state_dict().values(), strict=True):
        assert torch.equal(one, two)


def test_generated_rows_are_asked_for_and_teach() -> None:
    asked: list[tuple[int, int]] = []
    # Real labels are useless here (one ignored but for a pixel); only the stream knows the second class.
    soft = np.stack([1 - TRAIN.labels, TRAIN.labels], 1).astype(np.uint8) * 255
    stream = array_stream(TRAIN.images, soft, seed=0)

    def synthetic(step: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        asked.append((step, count))
        return stream(step, count)

    blank = LabelledArrays(TRAIN.images, np.full_like(TRAIN.labels, IGNORE))
    blank.labels[:, 0, 0] = 0
    student = STUDENT.model_copy(update={"synthetic_share": 0.75})
    common = COMMON.model_copy(update={"steps": 24})
    result = fit(
        student, common, blank, VAL, synthetic, num_classes=2, seed=0,
        on_evaluate=lambda now: None, should_stop=lambda: False,
    )  # fmt: skip
    assert asked == [(step, 6) for step in range(24)]
    assert result.kept.val_miou > 0.7, result.history


def test_the_arms_differ_in_the_mix_alone() -> None:
    for share, expected in ((0.0, (8, 0)), (0.01, (7, 1)), (0.75, (2, 6)), (0.99, (1, 7))):
        assert rows_of_batch(STUDENT.model_copy(update={"synthetic_share": share}), COMMON, True) == expected
    assert rows_of_batch(STUDENT, COMMON, False) == (8, 0)


SOFT = np.stack([255 - TRAIN.labels * 200 - 30, TRAIN.labels * 200 + 30], 1).astype(np.uint8)
SHARED = STUDENT.model_copy(update={"synthetic_share": 0.75})


def _weights(result: FitResult) -> torch.Tensor:
    return torch.cat([value.detach().flatten() for value in result.model.parameters()])


def _of(settings: dict[str, Any], steps: int = 3, soft: np.ndarray = SOFT, **more: Any) -> FitResult:
    common = COMMON.model_copy(update={"steps": steps, "augment": AugmentConfig(zoom_share=0.0)})
    stream = array_stream(TRAIN.images, soft, 0)
    return _fit(SHARED.model_copy(update=settings), common, synthetic=stream, **more)


def test_later_settings_change_a_student_only_where_they_are_on() -> None:
    plain = _weights(_of({}))
    assert torch.equal(_weights(_of({"final_share": 0.75})), plain)
    hard = np.stack([1 - TRAIN.labels, TRAIN.labels], 1).astype(np.uint8) * 255
    of_hard = _weights(_of({}, soft=hard))
    torch.testing.assert_close(_weights(_of({"confidence_gamma": 2.0}, soft=hard)), of_hard, atol=1e-4, rtol=0)
    for on in ({"final_share": 0.0}, {"confidence_gamma": 2.0}, {"consistency_weight": 0.5}):
        assert float((_weights(_of(on)) - plain).abs().max()) > 1e-3, on


def test_averaged_weights_are_judged_and_kept_and_the_training_is_the_same() -> None:
    seen: dict[float, list[float]] = {}
    kept: dict[float, FitResult] = {}
    for decay in (0.0, 0.5, 0.999):
        common = COMMON.model_copy(update={"ema_decay": decay})
        kept[decay] = _fit(STUDENT, common)
        seen[decay] = [row["loss"] for row in kept[decay].history]
    assert seen[0.0] == seen[0.5] == seen[0.999]
    assert not torch.equal(_weights(kept[0.5]), _weights(kept[0.999]))
    assert not torch.equal(_weights(kept[0.5]), _weights(kept[0.0]))
    model = kept[0.5].model
    again = predict(model, VAL.images, COMMON.evaluate_batch).argmax(1).astype(np.uint8)
    np.testing.assert_array_equal(again, kept[0.5].kept.predictions)
    assert "ema_decay" not in StudentsConfig().dump()


def test_a_batch_holds_a_second_view_of_its_own_images_and_marks_generated_rows() -> None:
    student = SHARED.model_copy(update={"consistency_weight": 1.0, "final_share": 0.25, "kd_weight": 0.5})
    common = COMMON.model_copy(update={"augment": AugmentConfig(gain=0.0, gamma=0.0)})
    batches = _Batches(student, common, TRAIN, array_stream(TRAIN.images, SOFT, 0), 2, 0)
    for step, generated in ((0, 6), (1, 6), (2, 5)):
        images, targets, weights, soft_rows, view, theta = batches(step)
        torch.testing.assert_close(view, warp(images, theta), atol=1e-5, rtol=0)
        assert float((view - images).abs().max()) > 0.5
        assert soft_rows.tolist() == [False] * (8 - generated) + [True] * generated
        assert (targets.amax(dim=(1, 2, 3)) < 1).tolist() == soft_rows.tolist()
        assert weights.tolist() == [1.0] * (8 - generated) + [0.5] * generated
    assert len(_Batches(STUDENT, common, TRAIN, None, 2, 0)(0)) == 4


def test_the_share_falls_in_a_straight_line_and_rows_with_it() -> None:
    student = StudentConfig(synthetic_share=0.75, final_share=0.0)
    common = COMMON.model_copy(update={"steps": 13})
    assert (share_at(student, common, 0), share_at(student, common, 6), share_at(student, common, 12)) == (
        0.75,
        0.375,
        0.0,
    )
    rows = [rows_of_batch(student, common, True, step) for step in range(13)]
    assert rows[0] == (2, 6)
    assert rows[6] == (5, 3)
    assert rows[12] == (8, 0)
    assert [sum(row) for row in rows] == [8] * 13
    assert [n for _, n in rows] == sorted((n for _, n in rows), reverse=True)
    assert share_at(student.model_copy(update={"final_share": None}), common, 12) == 0.75
    with pytest.raises(ValueError, match=r"final_share 0\.5 to be at most synthetic_share 0\.25"):
        StudentConfig(synthetic_share=0.25, final_share=0.5)


def test_with_a_falling_share_streams_walk_on_and_real_rows_fill_up() -> None:
    asked: list[tuple[int, int]] = []

    def synthetic(step: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        asked.append((step, count))
        return TRAIN.images[:count], SOFT[:count]

    student = SHARED.model_copy(update={"final_share": 0.0})
    common = COMMON.model_copy(update={"steps": 13})
    result = _fit(student, common, synthetic=synthetic)
    rows = [rows_of_batch(student, common, True, step) for step in range(13)]
    assert asked == [(step, 6) for step, (_, generated) in enumerate(rows) if generated]
    assert len(asked) == 11
    assert result.epochs == sum(real for real, _ in rows) / 16
    for step in range(24):
        assert spread(24, 24, step).tolist() == list(range(24))
        kept = spread(24, 6, step)
        assert len(set(kept.tolist())) == 6
        assert int((kept < 12).sum()) == 3  # of two sources half and half


@pytest.mark.gpu
def test_a_step_with_every_setting_on_is_captured(caplog: pytest.LogCaptureFixture) -> None:
    on = {"final_share": 0.25, "confidence_gamma": 1.0, "consistency_weight": 1.0}
    with caplog.at_level(logging.WARNING, "dakter"):
        result = _of(on, steps=12, device="cuda")
    assert "not captured" not in caplog.text
    assert all(np.isfinite(row["loss"]) for row in result.history)


def test_stream_is_a_pure_function_and_covers_the_corpus() -> None:
    images = np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1)
    stream, again = array_stream(images, images, 5), array_stream(images, images, 5)
    drawn = [stream(step, 4)[0].flatten().tolist() for step in range(5)]
    assert sorted(chain.from_iterable(drawn)) == sorted(list(range(10)) * 2)
    assert again(3, 4)[0].flatten().tolist() == drawn[3]
    assert array_stream(images, images, 6)(0, 4)[0].flatten().tolist() != drawn[0]


def test_a_mixed_stream_gives_each_source_its_share() -> None:
    def source(value: int) -> SyntheticStream:
        images = np.full((4, 1, 1, 1), value, np.uint8)
        return array_stream(images, images, 0, f"source{value}")

    mixed = mixed_stream([(source(1), 1.0), (source(2), 1.0)])
    assert mixed(0, 6)[0].flatten().tolist() == [1, 1, 1, 2, 2, 2]
    assert mixed_stream([(source(1), 3.0), (source(2), 1.0)])(0, 8)[1].flatten().tolist() == [1] * 6 + [2] * 2
    for count in range(1, 9):
        assert len(mixed(3, count)[0]) == count
    with pytest.raises(ConfigError, match="above 0"):
        mixed_stream([(source(1), 0.0)])
    with pytest.raises(ConfigError, match="at least one"):
        mixed_stream([])


def test_learning_rate_rises_then_falls_to_zero() -> None:
    common = StudentsConfig(steps=100, warmup_share=0.1)
    rates = [learning_rate_factor(step, common) for step in range(100)]
    assert rates[:11] == sorted(rates[:11])
    assert rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 0.001


def test_a_diverging_student_scores_low_without_nan() -> None:
    result = _fit(STUDENT.model_copy(update={"learning_rate": 1e6}), COMMON.model_copy(update={"steps": 5}))
    assert all(np.isfinite(row["loss"]) for row in result.history)
    assert result.kept.val_miou < 0.6


def test_bf16_learns_too() -> None:
    result = _fit(common=COMMON.model_copy(update={"steps": 10, "precision": "bf16"}))
    assert result.kept.val_miou > 0.6, result.history


def test_stop_and_bad_input_are_told() -> None:
    calls = iter([False, False, True])
    with pytest.raises(Stopped, match="step 2 of 12"):
        _fit(should_stop=lambda: next(calls))
    with pytest.raises(ConfigError, match=r"synthetic_share is 0\.5"):
        _fit(STUDENT.model_copy(update={"synthetic_share": 0.5}))
    with pytest.raises(DataError, match="val: 8 images without one labelled pixel"):
        fit(
            STUDENT, COMMON, TRAIN, LabelledArrays(VAL.images, np.full_like(VAL.labels, IGNORE)), None, num_classes=2,
            seed=0, on_evaluate=lambda now: None, should_stop=lambda: False,
        )  # fmt: skip
