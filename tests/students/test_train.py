"""The one training routine: it learns, repeats exactly, keeps the best evaluation, and mixes batches as stated."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
import torch

from dakter import metrics, rng
from dakter.errors import ConfigError, DataError, Stopped
from dakter.schema import IGNORE
from dakter.students.augment import AugmentConfig
from dakter.students.models import StudentConfig, predict
from dakter.students.train import (
    Evaluation,
    FitResult,
    LabelledArrays,
    StudentsConfig,
    SyntheticStream,
    array_stream,
    fit,
    learning_rate_factor,
    mixed_stream,
    rows_of_batch,
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
    assert result.best.val_miou == max(now.val_miou for now in seen) == seen[-1].best_val_miou
    assert result.best.val_miou > 0.8, result.history
    predicted = predict(result.model, VAL.images).argmax(1)
    assert metrics.miou(metrics.confusion_matrix(VAL.labels, predicted, 2)) == result.best.val_miou
    assert result.epochs == 24 * 8 / 16


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
    assert result.best.val_miou > 0.7, result.history


def test_the_arms_differ_in_the_mix_alone() -> None:
    for share, expected in ((0.0, (8, 0)), (0.01, (7, 1)), (0.75, (2, 6)), (0.99, (1, 7))):
        assert rows_of_batch(STUDENT.model_copy(update={"synthetic_share": share}), COMMON, True) == expected
    assert rows_of_batch(STUDENT, COMMON, False) == (8, 0)


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
    assert result.best.val_miou < 0.6


def test_bf16_learns_too() -> None:
    result = _fit(common=COMMON.model_copy(update={"steps": 10, "precision": "bf16"}))
    assert result.best.val_miou > 0.6, result.history


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
