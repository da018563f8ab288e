"""``fit``: the one training routine of a student, in and outside the sweep, for every arm alike.

Equal for all arms: steps, batch size, augmentation, learning-rate schedule, and which checkpoint is kept (the one
with the best val mIoU of all evaluations). A batch has ``batch_size`` rows; ``synthetic_share`` of them are generated
and the others real, so an arm without generated data sees *more* real rows in its steps, never fewer.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from dakter import metrics, rng
from dakter.captured import Captured
from dakter.config import Config, setting
from dakter.errors import ConfigError, DataError, Stopped
from dakter.schema import check_images, check_labels, soft_from_stored, to_model
from dakter.students.augment import AugmentConfig, augment
from dakter.students.losses import cross_entropy, one_hot, soft_dice, temper
from dakter.students.models import StudentConfig, build, predict

# (step, count) -> images stored (count, C, H, W), soft labels stored uint8 (count, K, H, W); a pure function.
SyntheticStream = Callable[[int, int], tuple[np.ndarray, np.ndarray]]


class StudentsConfig(Config):
    """What all students share."""

    steps: int = setting(2000, "training steps of every student", ge=1)
    batch_size: int = setting(32, "rows of a batch, real and generated together", ge=2)
    warmup_share: float = setting(
        0.05, "share of the steps in which the learning rate rises; a cosine to 0 follows", ge=0, lt=1
    )
    max_grad_norm: float = setting(1.0, "gradients are scaled down to this norm", gt=0)
    evaluate_every: int = setting(100, "steps between evaluations on val (and at the end)", ge=1)
    evaluate_batch: int = setting(32, "rows of a batch at evaluation", ge=1)
    precision: Literal["fp32", "bf16"] = setting("fp32", "bf16: autocast in training; evaluation is fp32")
    augment: AugmentConfig = AugmentConfig()
    num_seeds: int = setting(3, "students trained afresh with the settings that the search chose, each arm", ge=1)
    seed: int = setting(0, "seed of the search; students of the final round take their own from it")
    corpus_memory_mb: int = setting(
        2048, "a corpus up to this decoded size is held in memory by every worker; larger ones stream", unit="MB", ge=0
    )


@dataclass(frozen=True)
class LabelledArrays:
    """Images stored (N, C, H, W) and class maps uint8 (N, H, W) with IGNORE where nothing is known."""

    images: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Evaluation:
    """A look at val.

    Attributes:
        step: steps done.
        loss: mean training loss since the last look.
        val_miou: mIoU over the classes present in val.
        val_iou: IoU a class; NaN for a class that val lacks.
        best_val_miou: the best so far.
        predictions: class maps of val, uint8 (N, H, W).
    """

    step: int
    loss: float
    val_miou: float
    val_iou: tuple[float, ...]
    best_val_miou: float
    predictions: np.ndarray = field(repr=False)

    def row(self) -> dict[str, float]:
        """One row of a history."""
        return {"step": self.step, "loss": self.loss, "val_miou": self.val_miou}


@dataclass(frozen=True)
class FitResult:
    """The student at its best evaluation.

    Attributes:
        model: weights of ``best_step``, in eval mode, on the CPU.
        best: that evaluation.
        history: rows ``{"step", "loss", "val_miou"}``.
        steps: steps trained.
        seconds: wall time.
        epochs: passes over the real training set.
    """

    model: nn.Module
    best: Evaluation
    history: list[dict[str, float]]
    steps: int
    seconds: float
    epochs: float


def rows_of_batch(student: StudentConfig, common: StudentsConfig, with_synthetic: bool) -> tuple[int, int]:
    """(real rows, generated rows) of every batch; at least one of each when there is generated data."""
    if not with_synthetic:
        return common.batch_size, 0
    if student.synthetic_share == 0.0:
        return common.batch_size, 0
    synthetic = min(common.batch_size - 1, max(1, round(common.batch_size * student.synthetic_share)))
    return common.batch_size - synthetic, synthetic


def array_stream(images: np.ndarray, soft: np.ndarray, seed: int, name: str = "students/synthetic") -> SyntheticStream:
    """A stream over pairs in memory: every one once an epoch, in an order drawn from (seed, ``name``, epoch)."""
    order = _Order(len(images), seed, name)

    def draw(step: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        chosen = order(step * count, count)
        return images[chosen], soft[chosen]

    return draw


def mixed_stream(parts: Sequence[tuple[SyntheticStream, float]]) -> SyntheticStream:
    """A stream whose every batch holds rows of several streams, in proportion to their weights.

    Args:
        parts: streams with weights above 0, e.g. generated pairs and real images that a model labelled. Of ``count``
            rows each gets its share, rounded so that they add up; the rows of one stream stand together.

    Raises:
        ConfigError: no stream, or a weight that is not above 0.
    """
    weights = np.array([weight for _, weight in parts], dtype=np.float64)
    if not len(parts) or not (weights > 0).all():
        raise ConfigError(f"weights of a mixed stream are {weights.tolist()}; expected at least one, each above 0")

    def draw(step: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        counts = shared_rows(weights, count)
        drawn = [stream(step, rows) for (stream, _), rows in zip(parts, counts, strict=True) if rows]
        images, soft = zip(*drawn, strict=True)
        return np.concatenate(images), np.concatenate(soft)

    return draw


def shared_rows(weights: Sequence[float] | np.ndarray, count: int) -> list[int]:
    """``count`` rows shared out in proportion to weights above 0, rounded so that they add up."""
    ends = np.cumsum(weights) / np.sum(weights) * count
    rows: list[int] = np.diff(np.rint(ends).astype(int), prepend=0).tolist()
    return rows


class _Order:
    """Sample indices of an endless walk through shuffled epochs; a pure function of the position."""

    def __init__(self, count: int, seed: int, stream: str):
        self._count, self._seed, self._stream = count, seed, stream
        self._epochs: dict[int, np.ndarray] = {}

    def _epoch(self, epoch: int) -> np.ndarray:
        if epoch not in self._epochs:
            if len(self._epochs) > 4:
                self._epochs.clear()
            self._epochs[epoch] = rng.permutation(self._count, self._seed, self._stream, epoch)
        return self._epochs[epoch]

    def __call__(self, start: int, count: int) -> np.ndarray:
        positions = [divmod(number, self._count) for number in range(start, start + count)]
        return np.array([self._epoch(epoch)[at] for epoch, at in positions], dtype=np.int64)


def learning_rate_factor(step: int, common: StudentsConfig) -> float:
    """Share of the peak learning rate at ``step`` (0-based): linear warm-up, then a half cosine to 0 at the end."""
    warmup = round(common.steps * common.warmup_share)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, common.steps - warmup)))


def fit(
    student: StudentConfig,
    common: StudentsConfig,
    train: LabelledArrays,
    val: LabelledArrays,
    synthetic: SyntheticStream | None,
    *,
    num_classes: int,
    seed: int,
    on_evaluate: Callable[[Evaluation], None],
    should_stop: Callable[[], bool],
    on_step: Callable[[int], None] = lambda step: None,
    device: str = "cpu",
) -> FitResult:
    """Train one student.

    Args:
        student: its network and learning settings.
        common: what all students share.
        train: real labelled pairs.
        val: real labelled pairs that steer: the weights kept are those of the best val mIoU.
        synthetic: generated pairs, or None for the control.
        num_classes: K.
        seed: of weights, order, augmentation and dropout; on the CPU the same seed gives the same student.
        on_evaluate: called after each look at val; whatever it raises ends the training.
        should_stop: asked before every step.
        on_step: told how many steps are done, after each.
        device: torch device of the network.

    Raises:
        Stopped: asked to stop; nothing is kept, the same call starts over.
        ConfigError: the student wants generated data and there is none.
        DataError: arrays do not fit each other, or a set is empty.
    """
    _check(student, train, val, synthetic, num_classes)
    begin = time.monotonic()
    # Everything below draws from its own seed; the caller's generator state is left as it was.
    with torch.random.fork_rng():
        torch.manual_seed(rng.derive_seed(seed, "students/weights"))
        model = build(student, train.images.shape[1], num_classes).to(device)
        return _train(
            model,
            student,
            common,
            train,
            val,
            synthetic,
            num_classes,
            seed,
            on_evaluate,
            should_stop,
            on_step,
            device,
            begin,
        )


def _check(
    student: StudentConfig,
    train: LabelledArrays,
    val: LabelledArrays,
    synthetic: SyntheticStream | None,
    num_classes: int,
) -> None:
    for name, arrays in (("train", train), ("val", val)):
        check_images(arrays.images, where=name, bands=train.images.shape[1])
        check_labels(arrays.labels, arrays.images, num_classes, where=name)
        if not (arrays.labels < num_classes).any():
            raise DataError(f"{name}: {len(arrays.images)} images without one labelled pixel; expected labels")
    if synthetic is None and student.synthetic_share > 0:
        raise ConfigError(
            f"synthetic_share is {student.synthetic_share} without generated data; set it to 0 or pass a stream"
        )


def _train(
    model: nn.Module,
    student: StudentConfig,
    common: StudentsConfig,
    train: LabelledArrays,
    val: LabelledArrays,
    synthetic: SyntheticStream | None,
    num_classes: int,
    seed: int,
    on_evaluate: Callable[[Evaluation], None],
    should_stop: Callable[[], bool],
    on_step: Callable[[int], None],
    device: str,
    begin: float,
) -> FitResult:
    num_real, num_synthetic = rows_of_batch(student, common, synthetic is not None)
    order = _Order(len(train.images), seed, "students/order")
    weights = torch.tensor([student.ce_weight] * num_real + [student.kd_weight] * num_synthetic, device=device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=student.learning_rate, weight_decay=student.weight_decay, fused=device != "cpu"
    )
    history: list[dict[str, float]] = []
    best: Evaluation | None = None
    kept: dict[str, torch.Tensor] = {}
    losses: list[float] = []
    kind = torch.device(device).type

    def differentiate(images: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with torch.autocast(kind, torch.bfloat16, enabled=common.precision == "bf16"):
            logits = model(images)
        loss = cross_entropy(logits, targets, weights)
        if student.dice_weight:
            loss = loss + student.dice_weight * soft_dice(logits, targets)
        torch.autograd.backward(loss)
        return loss.detach(), nn.utils.clip_grad_norm_(model.parameters(), common.max_grad_norm)

    gradients = Captured(differentiate, model.parameters(), capture=kind == "cuda")
    for step in range(common.steps):
        if should_stop():
            raise Stopped(f"student stopped at step {step} of {common.steps}; it starts over")
        chosen = order(step * num_real, num_real)
        images = to_model(train.images[chosen])
        targets = one_hot(torch.from_numpy(train.labels[chosen].astype(np.int64)), num_classes)
        if synthetic is not None and num_synthetic:
            drawn, soft = synthetic(step, num_synthetic)
            images = torch.cat([images, to_model(drawn)])
            targets = torch.cat([targets, temper(soft_from_stored(soft), student.temperature)])
        images, targets = augment(images, targets, common.augment, seed=seed, step=step)
        for group in optimizer.param_groups:
            group["lr"] = student.learning_rate * learning_rate_factor(step, common)
        model.train()
        torch.manual_seed(rng.derive_seed(seed, "students/dropout", step))
        loss, norm = gradients(images.to(device), targets.to(device))
        # A step without finite gradients is skipped, as loss scalers do: a diverging trial scores low, not NaN.
        if torch.isfinite(norm):
            optimizer.step()
        losses.append(float(loss))
        on_step(step + 1)
        if (step + 1) % common.evaluate_every == 0 or step + 1 == common.steps:
            now = _evaluate(model, val, num_classes, common, step + 1, losses, best)
            if best is None or now.val_miou > best.val_miou:
                best = now
                kept = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
            losses = []
            history.append(now.row())
            on_evaluate(now)
    assert best is not None
    model.cpu().load_state_dict(kept)
    return FitResult(
        model.eval(),
        best,
        history,
        common.steps,
        time.monotonic() - begin,
        common.steps * num_real / len(train.images),
    )


def _evaluate(
    model: nn.Module,
    val: LabelledArrays,
    num_classes: int,
    common: StudentsConfig,
    step: int,
    losses: list[float],
    best: Evaluation | None,
) -> Evaluation:
    predictions = predict(model, val.images, common.evaluate_batch).argmax(1).astype(np.uint8)
    confusion = metrics.confusion_matrix(val.labels, predictions, num_classes)
    score = metrics.miou(confusion)
    loss: Any = np.nan_to_num(np.mean(losses), nan=1e6, posinf=1e6)
    return Evaluation(
        step,
        float(loss),
        score,
        tuple(metrics.iou(confusion).tolist()),
        max(score, best.val_miou) if best else score,
        predictions,
    )
