"""Settings of the joint model's training, and its learning rate."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

from pydantic import model_validator

from dakter.config import Config, setting
from dakter.views import ViewConfig


class LabelViews(ViewConfig):
    """Other views of rows that ask for p(y | x) outright, image and label alike; off unless a strength is set.

    Labelled rows, and those of ``mean_teacher``.

    Such a row shows the network its image clean and has no image loss, so whatever is done to it is nothing that
    samples could learn: it is augmentation that cannot leak (Karras et al. 2022, 2206.00364, appendix F.2, tell the
    network what was done for that end).
    """

    zoom_share: float = setting(0.0, "share of such rows that are cropped and enlarged", ge=0, le=1)
    gain: float = setting(0.0, "brightness factor exp(u), u uniform in +-gain, of the stored intensity", ge=0, le=2)
    gamma: float = setting(0.0, "exponent exp(u), u uniform in +-gamma, of the stored intensity", ge=0, le=2)


class MeanTeacher(Config):
    """Unlabelled images that learn p(y | x) from the averaged weights; off unless a share is set.

    The averaged weights see the image plain, the network sees it in a view of ``label_views``; with these off, the lag
    of the average is all that teaches.
    """

    share: float = setting(0.0, "share of a batch's unlabelled rows that learn so, and nothing of x", ge=0, le=1)
    weight: float = setting(1.0, "weight of the mean over such rows, beside that over labelled rows", ge=0)
    start_step: int = setting(
        350,
        "steps before it starts: until then the average knows too little, and these rows learn x",
        unit="steps",
        ge=0,
    )
    temperature: float = setting(1.0, "T of the targets p^(1/T), renormalised; below 1 they are surer", gt=0)


class TrainConfig(Config):
    """How the joint model is fitted. AdamW; a warm-up to ``learning_rate``, then a cosine down to 0 at ``steps``."""

    later: ClassVar[tuple[str, ...]] = ("label_views", "mean_teacher")

    steps: int = setting(5000, "optimiser steps", unit="steps", ge=1)
    batch_size: int = setting(32, "rows of a batch, over all workers", unit="images", ge=1)
    unlabelled_share: float = setting(
        0.5, "share of a batch that is unlabelled images, where the corpus has any", ge=0, lt=1
    )
    learning_rate: float = setting(1e-3, "peak learning rate", gt=0)
    warmup_steps: int = setting(200, "linear warm-up", unit="steps", ge=0)
    weight_decay: float = setting(0.01, "decoupled weight decay", ge=0)
    clip_norm: float = setting(1.0, "largest norm of the gradient", gt=0)
    ema_decay: float = setting(0.999, "decay of the weight average that samples", ge=0, lt=1)
    precision: Literal["fp32", "bf16"] = setting("bf16", "number format inside the network (autocast)")
    dihedral: bool = setting(True, "turn and flip image and label together, 8 ways")
    label_views: LabelViews = LabelViews()
    mean_teacher: MeanTeacher = MeanTeacher()
    checkpoint_every: int = setting(500, "steps between checkpoints", unit="steps", ge=1)
    log_every: int = setting(50, "steps between log records, each the mean over them", unit="steps", ge=1)
    validate_every: int | None = setting(
        None,
        "steps between looks at p(y | x) on val, and one at the end; needs diffusion.mode independent; null: none",
        unit="steps",
        ge=1,
    )
    validate_evaluations: int = setting(8, "network evaluations averaged into p(y | x) at such a look", ge=1)
    keep: Literal["last", "best"] = setting(
        "last",
        "averaged weights that become the model: the last, or those of the look with the lowest NLL of p(y | x) on "
        "val; images drawn may go on improving after it",
    )
    patience: int | None = setting(
        None, "looks in a row without a lower NLL on val after which training ends early; null: it does not", ge=1
    )
    seed: int = setting(0, "seed of weights, batches and noise")

    @model_validator(mode="after")
    def _looks_where_they_choose(self) -> TrainConfig:
        if self.keep == "best" and self.validate_every is None:
            raise ValueError("keep best needs looks at val to choose by: set train.validate_every")
        if self.patience is not None and self.keep != "best":
            raise ValueError(
                f"patience is {self.patience} with keep {self.keep}; expected keep best: training that ends early for "
                "want of better weights has to keep the better ones"
            )
        return self

    @model_validator(mode="after")
    def _teaches_someone(self) -> TrainConfig:
        teacher = self.mean_teacher
        if teacher.share and not self.unlabelled_share:
            raise ValueError(
                f"mean_teacher.share is {teacher.share:g} with unlabelled_share 0; expected rows of unlabelled images "
                "to take them from: raise unlabelled_share or set the share to 0"
            )
        if teacher.share and teacher.start_step >= self.steps:
            raise ValueError(
                f"mean_teacher.start_step is {teacher.start_step} with {self.steps} steps; expected a step before the "
                "end: lower it or set mean_teacher.share to 0"
            )
        return self

    def identity(self) -> dict[str, Any]:
        """The settings that decide the model's weights; looks at val are among them only where they choose."""
        incidental = {"checkpoint_every", "log_every"}
        if self.keep == "last":
            incidental |= {"validate_every", "validate_evaluations", "keep", "patience"}
        return {key: value for key, value in self.dump().items() if key not in incidental}


def learning_rate(config: TrainConfig, step: int) -> float:
    """Of optimiser step number ``step``, from 0."""
    warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    rest = max(1, config.steps - config.warmup_steps)
    done = min(1.0, max(0, step - config.warmup_steps) / rest)
    return config.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * done))
