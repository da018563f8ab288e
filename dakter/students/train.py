"""``fit``: the one training routine of a student, in and outside the sweep, for every arm alike.

Equal for all arms of one ``StudentsConfig``: steps, batch size, augmentation, learning-rate schedule, and which weights
are kept (those of the best val mIoU of all evaluations, or the last). A batch has ``batch_size`` rows;
``synthetic_share`` of them are generated and the others real, so an arm without generated data sees *more* real rows in
its steps, never fewer. The share may fall during training (``final_share``); the rows of a batch stay as many.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import nn

from dakter import metrics, rng
from dakter.captured import Captured
from dakter.config import Config, setting
from dakter.ema import Ema
from dakter.errors import ConfigError, DataError, Stopped
from dakter.schema import check_images, check_labels, soft_from_stored, to_model
from dakter.students.augment import AugmentConfig, augment, second_view
from dakter.students.losses import confidence, consistency, cross_entropy, one_hot, soft_dice, temper
from dakter.students.models import StudentConfig, build, predict
from dakter.students.streams import Order, SyntheticStream, spread


class StudentsConfig(Config):
    """What all students share."""

    later: ClassVar[tuple[str, ...]] = ("ema_decay", "keep")

    steps: int = setting(2000, "training steps of every student", ge=1)
    batch_size: int = setting(32, "rows of a batch, real and generated together", ge=2)
    warmup_share: float = setting(
        0.05, "share of the steps in which the learning rate rises; a cosine to 0 follows", ge=0, lt=1
    )
    max_grad_norm: float = setting(1.0, "gradients are scaled down to this norm", gt=0)
    ema_decay: float = setting(
        0.0,
        "decay of the average of weights that is looked at on val and becomes the student; 0: the weights themselves",
        ge=0,
        lt=1,
    )
    # The best of many looks at few val images may come by chance, and early: with soft labels it did (README, results).
    keep: Literal["best", "last"] = setting(
        "best", "weights that become the student: of the best val mIoU of all evaluations, or of the last step"
    )
    evaluate_every: int = setting(100, "steps between evaluations on val (and at the end)", ge=1)
    evaluate_batch: int = setting(32, "rows of a batch at evaluation", ge=1)
    precision: Literal["fp32", "bf16"] = setting("fp32", "bf16: autocast in training; evaluation is fp32")
    augment: AugmentConfig = AugmentConfig()
    num_seeds: int = setting(3, "students trained afresh with the settings that the search chose, each arm", ge=1)
    seed: int = setting(0, "seed of the search; students of the final round take their own from it")
    corpus_memory_mb: int = setting(
        2048, "each corpus up to this decoded size is in memory in every worker; larger ones stream", unit="MB", ge=0
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
        kept_val_miou: that of the weights that would be kept if training ended here.
        predictions: class maps of val, uint8 (N, H, W).
    """

    step: int
    loss: float
    val_miou: float
    val_iou: tuple[float, ...]
    kept_val_miou: float
    predictions: np.ndarray = field(repr=False)

    def row(self) -> dict[str, float]:
        """One row of a history."""
        return {"step": self.step, "loss": self.loss, "val_miou": self.val_miou}


@dataclass(frozen=True)
class FitResult:
    """The student with the weights that were kept.

    Attributes:
        model: weights of ``kept.step``, in eval mode, on the CPU.
        kept: their evaluation: the best one, or the last.
        history: rows ``{"step", "loss", "val_miou"}``.
        steps: steps trained.
        seconds: wall time.
        epochs: passes over the real training set.
    """

    model: nn.Module
    kept: Evaluation
    history: list[dict[str, float]]
    steps: int
    seconds: float
    epochs: float


def share_at(student: StudentConfig, common: StudentsConfig, step: int) -> float:
    """Share of generated rows at ``step`` (0-based): ``synthetic_share`` at the first, ``final_share`` at the last."""
    if student.final_share is None:
        return student.synthetic_share
    done = step / max(1, common.steps - 1)
    return student.synthetic_share + (student.final_share - student.synthetic_share) * done


def rows_of_batch(
    student: StudentConfig, common: StudentsConfig, with_synthetic: bool, step: int = 0
) -> tuple[int, int]:
    """(real rows, generated rows) of the batch of a step; at least one real row.

    When there is generated data also at least one generated row, unless their share falls: then it may come to none.
    """
    if not with_synthetic:
        return common.batch_size, 0
    if student.synthetic_share == 0.0:
        return common.batch_size, 0
    least = 1 if student.final_share is None else 0
    synthetic = min(common.batch_size - 1, max(least, round(common.batch_size * share_at(student, common, step))))
    return common.batch_size - synthetic, synthetic


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
        val: real labelled pairs that steer: where ``keep`` is best, the weights kept are those of the best val mIoU.
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
    batches = _Batches(student, common, train, synthetic, num_classes, seed)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=student.learning_rate, weight_decay=student.weight_decay, fused=device != "cpu"
    )
    history: list[dict[str, float]] = []
    kept: Evaluation | None = None
    weights: dict[str, torch.Tensor] = {}
    losses: list[float] = []
    kind = torch.device(device).type

    def logits_of(images: torch.Tensor) -> torch.Tensor:
        with torch.autocast(kind, torch.bfloat16, enabled=common.precision == "bf16"):
            return model(images)

    def differentiate(
        images: torch.Tensor,
        targets: torch.Tensor,
        row_weight: torch.Tensor,
        soft_rows: torch.Tensor,
        *second: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        logits = logits_of(images)
        gamma = student.confidence_gamma
        pixel_weight = confidence(targets, soft_rows, gamma) if gamma else None
        loss = cross_entropy(logits, targets, row_weight, pixel_weight)
        if student.dice_weight:
            loss = loss + student.dice_weight * soft_dice(logits, targets, pixel_weight)
        if second:
            view, theta = second
            loss = loss + student.consistency_weight * consistency(logits, logits_of(view), theta, soft_rows)
        torch.autograd.backward(loss)
        return loss.detach(), nn.utils.clip_grad_norm_(model.parameters(), common.max_grad_norm)

    gradients = Captured(differentiate, model.parameters(), capture=kind == "cuda")
    averaged = Ema(model, common.ema_decay) if common.ema_decay else None
    judged = copy.deepcopy(model) if averaged else model
    for step in range(common.steps):
        if should_stop():
            raise Stopped(f"student stopped at step {step} of {common.steps}; it starts over")
        batch = batches(step)
        for group in optimizer.param_groups:
            group["lr"] = student.learning_rate * learning_rate_factor(step, common)
        model.train()
        torch.manual_seed(rng.derive_seed(seed, "students/dropout", step))
        loss, norm = gradients(*(part.to(device) for part in batch))
        # A step without finite gradients is skipped, as loss scalers do: a diverging trial scores low, not NaN.
        if torch.isfinite(norm):
            optimizer.step()
            if averaged:
                averaged.update(model, step)
        losses.append(float(loss))
        on_step(step + 1)
        if (step + 1) % common.evaluate_every == 0 or step + 1 == common.steps:
            if averaged:
                judged.load_state_dict({**model.state_dict(), **averaged.state()})
            now = _evaluate(judged, val, num_classes, common, step + 1, losses, kept)
            if kept is None or common.keep == "last" or now.val_miou > kept.val_miou:
                kept = now
                weights = {name: value.detach().cpu().clone() for name, value in judged.state_dict().items()}
            losses = []
            history.append(now.row())
            on_evaluate(now)
    assert kept is not None
    model.cpu().load_state_dict(weights)
    return FitResult(
        model.eval(),
        kept,
        history,
        common.steps,
        time.monotonic() - begin,
        batches.num_real_rows / len(train.images),
    )


class _Batches:
    """The batches of one student, on the CPU, in the order of the steps.

    Attributes:
        num_real_rows: rows of real pairs in all batches so far.
    """

    def __init__(
        self,
        student: StudentConfig,
        common: StudentsConfig,
        train: LabelledArrays,
        synthetic: SyntheticStream | None,
        num_classes: int,
        seed: int,
    ):
        self._student, self._common, self._train, self._synthetic = student, common, train, synthetic
        self._num_classes, self._seed = num_classes, seed
        self._order = Order(len(train.images), seed, "students/order")
        # What a stream is asked for at every step, so that it walks through its samples; some are not used later on.
        self._most = rows_of_batch(student, common, synthetic is not None)[1]
        self.num_real_rows = 0

    def __call__(self, step: int) -> tuple[torch.Tensor, ...]:
        """Images (B, C, H, W), targets (B, K, H, W), weights (B,), which rows are generated (B,) and, for the distance
        of two views, the second view (B, C, H, W) and its geometry (B, 2, 3). Real rows come first.
        """
        student, common = self._student, self._common
        num_real, num_synthetic = rows_of_batch(student, common, self._synthetic is not None, step)
        chosen = self._order(self.num_real_rows, num_real)
        self.num_real_rows += num_real
        images = to_model(self._train.images[chosen])
        targets = one_hot(torch.from_numpy(self._train.labels[chosen].astype(np.int64)), self._num_classes)
        if self._synthetic is not None and num_synthetic:
            drawn, soft = (part[spread(self._most, num_synthetic, step)] for part in self._synthetic(step, self._most))
            images = torch.cat([images, to_model(drawn)])
            targets = torch.cat([targets, temper(soft_from_stored(soft), student.temperature)])
        images, targets = augment(images, targets, common.augment, seed=self._seed, step=step)
        weights = torch.tensor([student.ce_weight] * num_real + [student.kd_weight] * num_synthetic)
        batch = images, targets, weights, torch.arange(len(images)) >= num_real
        if student.consistency_weight and self._most:
            return *batch, *second_view(images, common.augment, seed=self._seed, step=step)
        return batch


def _evaluate(
    model: nn.Module,
    val: LabelledArrays,
    num_classes: int,
    common: StudentsConfig,
    step: int,
    losses: list[float],
    kept: Evaluation | None,
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
        max(score, kept.val_miou) if kept and common.keep == "best" else score,
        predictions,
    )
