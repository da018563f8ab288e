"""Looks at p(y | x) of the averaged weights while training runs: the curve that shows when a model begins to memorise.

With few labels the score on training images rises to the end, while that on val turns: p(y | x) grows too sure. Where
the turn comes depends on labels and seed, so it is measured and not guessed.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from dakter.diffusion.batch import TrainingData
from dakter.diffusion.pipeline import JointDiffusionPipeline
from dakter.diffusion.sampler import SamplerConfig
from dakter.diffusion.schedule import DiffusionConfig
from dakter.diffusion.train_config import TrainConfig
from dakter.errors import ConfigError, DakterError
from dakter.metrics import confusion_matrix, log_loss, miou
from dakter.schema import IGNORE, to_model

_CHUNK = 64


class Validation:
    """The looks at one training run, and the weights at the best of them.

    Attributes:
        curve: a row a look, oldest first: ``step`` and, for ``val`` and for as many labelled images of ``train``,
            ``<split>_nll`` in nats a labelled pixel and ``<split>_miou`` in [0, 1].
        best: averaged weights by name, on the CPU, at the look of the lowest ``val_nll``; empty before the first
            look, and always with ``train.keep`` last.

    A model of ``diffusion.mode`` joint does not know p(y | x), and there are no looks at it.

    Raises:
        ConfigError: train or val has no labelled pixel to look at, or looks are to choose and the mode is joint.
    """

    def __init__(self, train: TrainConfig, diffusion: DiffusionConfig, data: TrainingData):
        self._train, self._num_classes = train, len(data.class_table)
        self.curve: list[dict[str, float]] = []
        self.best: dict[str, torch.Tensor] = {}
        self._every = every = train.validate_every if diffusion.mode == "independent" else None
        check_choice(train, diffusion)
        if every is None:
            return
        val = _labelled(data.val_images, data.val_labels)
        seen = _labelled(data.images, data.labels, most=len(val[0]))
        self._splits = {"val": val, "train": seen}
        for name, (images, _) in self._splits.items():
            if not len(images):
                raise ConfigError(
                    f"train.validate_every is {every}, and no {name} image has a labelled pixel; expected some: "
                    "prepare tiles with a labelled train and val split, or set train.validate_every to null"
                )

    def due(self, step: int) -> bool:
        """Whether to look after ``step`` steps: every ``validate_every`` of them, and at the end."""
        return self._every is not None and (step % self._every == 0 or step == self._train.steps)

    def look(
        self,
        pipeline: JointDiffusionPipeline,
        step: int,
        rank: int,
        world: int,
        over_ranks: Callable[[torch.Tensor], torch.Tensor],
    ) -> dict[str, float]:
        """Score the averaged weights and keep them if they are the best; the row that joins ``curve``.

        Every rank scores every world-th image; ``over_ranks`` adds up float64 tensors, so that all ranks know the same.

        Raises:
            DakterError: the NLL is not finite.
        """
        row: dict[str, float] = {"step": step}
        for split, (images, labels) in self._splits.items():
            own = np.arange(rank, len(images), world)
            nll, pixels, confusion = _totals(over_ranks(self._sums(pipeline, images, labels, own)))
            row |= {f"{split}_nll": nll / pixels, f"{split}_miou": miou(confusion)}
        if not math.isfinite(row["val_nll"]):
            raise DakterError(
                f"step {step}: the NLL of p(y | x) on val is {row['val_nll']}; training has diverged: lower "
                "train.learning_rate, raise train.warmup_steps or use precision fp32"
            )
        if self._train.keep == "best" and row["val_nll"] < min((r["val_nll"] for r in self.curve), default=math.inf):
            self.best = {name: value.detach().cpu().clone() for name, value in pipeline.unet.state_dict().items()}
        self.curve.append(row)
        return row

    @property
    def best_step(self) -> int | None:
        """Steps done at the lowest ``val_nll`` so far, the first of equals; None before the first look."""
        return int(min(self.curve, key=lambda row: row["val_nll"])["step"]) if self.curve else None

    def ended(self, step: int) -> bool:
        """Whether training is over: all steps are done, or ``patience`` looks in a row were none the better."""
        if step >= self._train.steps:
            return True
        best, patience = self.best_step, self._train.patience
        return patience is not None and best is not None and sum(row["step"] > best for row in self.curve) >= patience

    def _sums(
        self, pipeline: JointDiffusionPipeline, images: np.ndarray, labels: np.ndarray, own: np.ndarray
    ) -> torch.Tensor:
        """NLL, labelled pixels and confusion matrix of the images numbered ``own``, float64 ``(2 + K * K,)``."""
        nll, pixels, confusion = 0.0, 0, np.zeros((self._num_classes, self._num_classes), np.int64)
        for start in range(0, len(own), _CHUNK):
            at = own[start : start + _CHUNK]
            soft = pipeline.label(
                to_model(images[at]),
                evaluations=self._train.validate_evaluations,
                seed=self._train.seed,
                indices=at,
                sampler=SamplerConfig(micro_batch=len(at), precision=self._train.precision),  # unpadded
            ).numpy()
            soft = soft / soft.sum(axis=1, keepdims=True)
            true = labels[at]
            nll += float(log_loss(soft, true).sum())
            pixels += int((true != IGNORE).sum())
            confusion += confusion_matrix(true, soft.argmax(axis=1), self._num_classes)
        return torch.tensor([nll, pixels, *confusion.ravel().tolist()], dtype=torch.float64)


def check_choice(train: TrainConfig, diffusion: DiffusionConfig) -> None:
    """Raise ConfigError if training asks for a p(y | x), to choose weights by or to teach, that the model lacks."""
    if train.keep == "best" and diffusion.mode != "independent":
        raise ConfigError(
            f"train.keep is best with diffusion.mode {diffusion.mode}; expected mode independent, without which there "
            "is no p(y | x) to choose by: set train.keep to last and train.patience to null"
        )
    share = train.mean_teacher.share
    if share and diffusion.label_loss != "ce":
        raise ConfigError(
            f"train.mean_teacher.share is {share:g} with diffusion.label_loss {diffusion.label_loss}; "
            "expected label_loss ce, whose softmax is the target: set the share to 0 or the loss to ce"
        )


def _labelled(
    images: np.ndarray | None, labels: np.ndarray | None, most: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The first ``most`` images with a labelled pixel, and their labels."""
    if images is None or labels is None:
        return np.empty(0), np.empty(0)
    chosen = np.flatnonzero((labels != IGNORE).any(axis=(1, 2)))[:most]
    return images[chosen], labels[chosen]


def _totals(sums: torch.Tensor) -> tuple[float, float, np.ndarray]:
    num_classes = math.isqrt(len(sums) - 2)
    counts = sums[2:].numpy().astype(np.int64).reshape(num_classes, num_classes)
    return float(sums[0]), float(sums[1]), counts
