"""Training of the joint model: one routine for one process or many, resumable to the bit."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from dakter.config import load
from dakter.diffusion.batch import TrainingData
from dakter.diffusion.checkpoint import read_checkpoint
from dakter.diffusion.network import JointUNet, NetworkConfig
from dakter.diffusion.pipeline import JointDiffusionPipeline
from dakter.diffusion.schedule import DiffusionConfig
from dakter.diffusion.train_config import TrainConfig
from dakter.diffusion.trainer import Trainer
from dakter.errors import Stopped
from dakter.schema import ClassTable

__all__ = ["FitResult", "TrainConfig", "TrainingData", "checkpoint_pipeline", "fit"]


@dataclass(frozen=True)
class FitResult:
    """A trained model.

    Attributes:
        pipeline: with averaged weights, those of ``kept_step``.
        history: a record every ``log_every`` steps.
        curve: looks at val, see ``Validation``; empty without ``validate_every``.
        steps: optimiser steps done; fewer than ``train.steps`` where patience ended it.
        kept_step: steps done when the weights of ``pipeline`` were taken.
        seconds: of training, over all starts.
    """

    pipeline: JointDiffusionPipeline
    history: list[dict[str, float]]
    curve: list[dict[str, float]]
    steps: int
    kept_step: int
    seconds: float


def fit(
    network: NetworkConfig,
    diffusion: DiffusionConfig,
    train: TrainConfig,
    data: TrainingData,
    *,
    resume: Path | None,
    on_checkpoint: Callable[[Path, dict[str, float]], None],
    on_log: Callable[[int, dict[str, float]], None],
    should_stop: Callable[[], bool],
    should_checkpoint: Callable[[], bool] = lambda: False,
    on_step: Callable[[int], None] = lambda step: None,
    on_look: Callable[[dict[str, float]], None] = lambda row: None,
    device: str = "cpu",
) -> FitResult:
    """Train, or go on from the checkpoint folder ``resume``.

    Batches are drawn without replacement, permutation after permutation of the images, and every row's place, turn,
    levels and noise are functions of (seed, step, row). With a process group initialised each rank takes every
    world-th row of the same global batch, so that the batch does not depend on the number of workers (with dropout
    its masks do). The loss is a sum over rows, divided by the whole batch's counts, so ranks need not have equally
    many: any number of workers up to the batch size gives the same weights but for rounding, also when it changes from
    one resumption to the next. A resumed run equals an uninterrupted one to the bit with the same number of workers
    and threads.

    Args:
        on_checkpoint: called on every rank equally often with a folder that is deleted afterwards (full on rank 0,
            empty on the others), and the latest losses with whether training has ``ended`` (1.0, else 0.0); at
            ``checkpoint_every``, at the end, before stopping and when asked for.
        on_log: called on rank 0 with (steps done, record).
        should_stop: asked on every rank after every step; one yes is enough.
        should_checkpoint: the same for a checkpoint out of turn.
        on_step: told on every rank how many steps are done, after each.
        on_look: called on rank 0 with a row of ``Validation.curve``, after each look at val.

    Raises:
        Stopped: after a checkpoint, if any rank was asked to stop.
        ConfigError, DataError: settings and data do not fit. ConflictError: ``resume`` has other settings or data.
        IntegrityError: ``resume`` is no sound checkpoint. DakterError: the loss is not finite.
    """
    data.check()
    trainer = Trainer(network, diffusion, train, data, torch.device(device))
    if resume is not None:
        trainer.resume(resume)
    looks = trainer.looks
    for batch in () if looks.ended(trainer.step) else trainer.batches():
        trainer.advance(batch)
        if looks.due(trainer.step):  # before the checkpoint, which then holds it
            row = trainer.look()
            if trainer.rank == 0:
                on_look(row)
        ended = looks.ended(trainer.step)
        record = trainer.log_if_due(ended)
        if record is not None and trainer.rank == 0:
            on_log(trainer.step, record)
        on_step(trainer.step)
        stop, checkpoint = trainer.any_rank(should_stop(), should_checkpoint())
        if stop or checkpoint or ended or trainer.step % train.checkpoint_every == 0:
            trainer.settle()
            with tempfile.TemporaryDirectory() as folder:
                if trainer.rank == 0:
                    trainer.write(Path(folder))
                on_checkpoint(Path(folder), {**trainer.latest(), "ended": float(ended)})
        if ended:
            break
        if stop:
            raise Stopped(f"training stopped after step {trainer.step} of {train.steps}; the same command goes on")
    return FitResult(
        trainer.pipeline(looks.best or None),
        trainer.history,
        looks.curve,
        trainer.step,
        (looks.best_step if looks.best else None) or trainer.step,
        trainer.seconds(),
    )


def checkpoint_pipeline(folder: Path) -> JointDiffusionPipeline:
    """The pipeline of a checkpoint's averaged weights, for a look at samples while training runs."""
    checkpoint = read_checkpoint(folder)
    settings, facts = checkpoint.state["settings"], checkpoint.state["facts"]
    table = ClassTable.from_json(facts["class_table"])
    unet = JointUNet.build(load(NetworkConfig, settings["network"]), len(facts["bands"]), len(table))
    unet.load_state_dict(checkpoint.tensors["ema"])
    return JointDiffusionPipeline.build(
        unet.eval(),
        load(DiffusionConfig, settings["diffusion"]),
        b=facts["b"],
        dihedral=settings["train"]["dihedral"],
        size_px=facts["size_px"],
        class_table=table,
        bands=facts["bands"],
        value_range=facts["value_range"],
    )
