"""Ray around the students: trials of the sweep (Ray Tune) and the final seeds (Ray tasks).

Workers get the arrays through Ray's object store, one copy a machine, and write no tracking: the driver does.
"""

from __future__ import annotations

import io
import logging
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import optuna
import ray
import torch
from ray import tune
from ray.tune.logger import JsonLoggerCallback
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from dakter import storage
from dakter.errors import ConflictError, DakterError, Stopped
from dakter.rng import derive_seed
from dakter.students import search, store
from dakter.students.models import StudentConfig
from dakter.students.search import Arm, SweepConfig
from dakter.students.streams import SyntheticStream
from dakter.students.train import Evaluation, FitResult, LabelledArrays, StudentsConfig, fit
from jobs._cli import Stop
from jobs._context import RunContext, enter
from jobs._ray import RayConfig, ResourceDeadline
from jobs._redone import Account, Steps, total
from jobs._sources import Source, stream_of

log = logging.getLogger("dakter.jobs.distill")
METRIC = "best_val_miou"  # of the weights that the trial would keep: with students.keep last those of its latest look


@dataclass(frozen=True)
class SweepData:
    """What every student learns from: real labelled pairs, and what the distilled arm has beside them, with weights."""

    train: LabelledArrays
    val: LabelledArrays
    num_classes: int
    sources: tuple[tuple[Source, float], ...]

    def stream(self, arm: Arm, seed: int) -> SyntheticStream | None:
        """Pairs beside the real labelled ones, for an arm; None for the control."""
        return None if arm == "real" else stream_of(self.sources, seed)

    def preview_rows(self, count: int = 4) -> np.ndarray:
        """Val images to show: those with the most classes, the first of equals."""
        variety = [-len(np.unique(label)) for label in self.val.labels]
        return np.sort(np.argsort(variety, kind="stable")[:count])


@dataclass(frozen=True)
class Work:
    """What trials and final students have in common, as workers get it; ``tally`` counts what of them is redone."""

    data_reference: Any
    tally: Any
    common: StudentsConfig
    sweep: SweepConfig
    arm: Arm
    folder: str
    threads: int
    gpu: bool
    context: RunContext

    @property
    def data(self) -> SweepData:
        """From the object store: arrays shared by the processes of a machine, not copied."""
        return ray.get(self.data_reference)

    def fit(
        self, name: str, student: StudentConfig, seed: int, on_evaluate: Callable[[Evaluation, Account], None]
    ) -> tuple[FitResult, Account]:
        """One student, here and now; what earlier workers lost of it stands in its account."""
        enter(self.context)
        torch.set_num_threads(self.threads)
        data, steps = self.data, Steps(self.tally, name)

        def evaluated(now: Evaluation) -> None:
            log.debug("%s: step %d, val mIoU %.4f", name, now.step, now.val_miou)
            on_evaluate(now, steps.account)

        result = fit(
            student,
            self.common,
            data.train,
            data.val,
            data.stream(self.arm, seed),
            num_classes=data.num_classes,
            seed=seed,
            on_evaluate=evaluated,
            should_stop=_never,
            on_step=steps,
            device="cuda" if self.gpu else "cpu",
        )
        return result, steps.account

    def put_preview(self, name: str, predictions: np.ndarray) -> None:
        """Predicted class maps of the shown val images, for the driver's figure."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, predictions=predictions[self.data.preview_rows()])
        storage.put(preview_url(self.folder, name), buffer.getvalue())


def _never() -> bool:
    return False  # workers are ended from the driver


def preview_url(folder: str, name: str) -> str:
    """Where a preview stands."""
    return storage.join(folder, "previews", f"{name}.npz")


def read_preview(folder: str, name: str) -> np.ndarray | None:
    """Predicted class maps uint8 (n, H, W) of a trial or student; None if it never got so far."""
    url = preview_url(folder, name)
    if not storage.exists(url):
        return None
    with np.load(io.BytesIO(storage.read_bytes(url))) as arrays:
        return np.asarray(arrays["predictions"])


def trial(params: dict[str, Any], work: Work) -> None:
    """One trial: a function trainable. Every trial has the same seed, so that choices are compared and not luck."""
    decisive = {*search.rungs(work.sweep, work.common), work.common.steps}
    name = f"{work.arm}-{tune.get_context().get_trial_id()}"

    def report(now: Evaluation, account: Account) -> None:
        # Tune ends a stopped trial inside report(), so whatever is to be kept of it is written before.
        if now.step in decisive:
            work.put_preview(name, now.predictions)
        scores = {"step": now.step, "loss": now.loss, "val_miou": now.val_miou, METRIC: now.kept_val_miou}
        tune.report({**scores, **account.costs()})

    student = search.student_config(work.sweep, params)
    work.fit(name, student, derive_seed(work.common.seed, "sweep/trial"), report)


class Watch(tune.Callback):
    """Tells the driver of trials. Tune pickles it with the experiment, so it holds no live object itself."""

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        LIVE.started(trial.trial_id, dict(trial.config))

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **i: Any) -> None:
        LIVE.result(trial.trial_id, result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        LIVE.ended(trial.trial_id, True)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        LIVE.ended(trial.trial_id, False)

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        LIVE.at_work(any(trial.status == "RUNNING" for trial in trials))
        if not LIVE.stop():
            return
        if callable(signal.getsignal(signal.SIGUSR1)):
            signal.raise_signal(signal.SIGUSR1)  # Tune's own: it saves the experiment's state and ends the loop
        else:
            raise Stopped("sweep stopped outside the main thread")


@dataclass
class Live:
    """What ``Watch`` reaches in this process, also after Tune has restored it from an earlier process's pickle."""

    stop: Callable[[], bool] = _never
    started: Callable[[str, dict[str, Any]], None] = lambda trial_id, params: None
    result: Callable[[str, dict[str, Any]], None] = lambda trial_id, result: None
    ended: Callable[[str, bool], None] = lambda trial_id, good: None
    at_work: Callable[[bool], None] = lambda any_trial: None  # may raise, which ends the search


LIVE = Live()


def run_trials(work: Work, ray_config: RayConfig, live: Live) -> list[dict[str, Any]]:
    """The search of one arm: Optuna's TPE proposes, ASHA stops; goes on where an earlier driver ended.

    With several trials at a time their order, and so the proposals, depends on timing; one at a time repeats exactly.

    Tune restores from pickles of its own below the sweep folder: keep that folder as private as the code.

    Returns:
        One table a trial: id, config, val_miou (see METRIC), steps, stopped_early, num_restarts, steps_redone.

    Raises:
        Stopped: asked to stop; the state of the search is kept.
        StorageError: no trial could run for ``ray.start_timeout_s``.
        DakterError: a trial failed for good.
    """
    global LIVE
    deadline = ResourceDeadline(ray, ray_config.trial_needs, 1, ray_config.start_timeout_s)
    LIVE = replace(live, at_work=deadline.check)
    # SIGINT stays with the job; of Tune's result files the JSON ones, from which it restores, are enough.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "5")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the new output prints tables even when told not to
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    base = storage.join(work.folder, "tune")
    base = base if storage.is_remote(base) else str(storage.local_path(base).absolute())
    trainable = tune.with_resources(
        tune.with_parameters(trial, work=work), {"cpu": ray_config.trial_cpus, "gpu": ray_config.trial_gpus}
    )
    path = storage.join(base, work.arm)
    if tune.Tuner.can_restore(path):
        log.info("%s: the search goes on from %s", work.arm, path)
        tuner = tune.Tuner.restore(path, trainable, resume_errored=True)
    else:
        tuner = tune.Tuner(
            trainable,
            tune_config=_tune_config(work, ray_config),
            run_config=tune.RunConfig(
                name=work.arm,
                storage_path=base,
                callbacks=[Watch(), JsonLoggerCallback()],  # type: ignore[no-untyped-call]
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=2),
            ),
        )
    try:
        grid = tuner.fit()
    finally:
        LIVE = Live()
    if live.stop():
        raise Stopped(f"sweep of arm {work.arm} stopped as asked; its state is kept; the same command resumes")
    if grid.errors:
        raise DakterError(
            f"arm {work.arm}: {grid.num_errors} of {len(grid)} trials failed; the first: {grid.errors[0]}"
        )
    return [_trial_record(work, grid[number]) for number in range(len(grid))]


def _trial_folder(trial: Any) -> str:
    return str(trial.trial_id)  # Tune's default strings all settings together


def _tune_config(work: Work, ray_config: RayConfig) -> Any:
    points = search.first_points(work.sweep, work.common.seed)
    # The same seed for both arms; constant_liar keeps trials that run at the same time apart.
    sampler = optuna.samplers.TPESampler(
        seed=derive_seed(work.common.seed, "sweep/tpe") % 2**32,
        # The first points fix the architecture alone, so TPE may propose the rest of some of them already.
        n_startup_trials=search.startup_trials(work.sweep),
        constant_liar=True,
    )
    return tune.TuneConfig(
        num_samples=work.sweep.num_trials,
        max_concurrent_trials=ray_config.trial_workers,
        search_alg=OptunaSearch(
            partial(search.suggest, work.sweep, work.arm),
            metric=METRIC,
            mode="max",
            points_to_evaluate=points,
            sampler=sampler,
        ),
        scheduler=ASHAScheduler(
            time_attr="step",
            metric=METRIC,
            mode="max",
            max_t=work.common.steps,
            grace_period=work.sweep.grace_steps,
            reduction_factor=work.sweep.reduction_factor,
        ),
        trial_dirname_creator=_trial_folder,
        reuse_actors=True,  # a fresh process would import torch for every trial
    )


def _trial_record(work: Work, result: Any) -> dict[str, Any]:
    metrics = result.metrics
    student = search.student_config(work.sweep, result.config)
    return {
        "id": metrics["trial_id"],
        "config": student.dump(),
        "val_miou": metrics[METRIC],
        "steps": metrics["step"],
        "stopped_early": metrics["step"] < work.common.steps,
        **total(metrics),
    }


@dataclass(frozen=True)
class Final:
    """One student of the final round: settings frozen, a fresh seed."""

    work: Work
    student: StudentConfig
    number: int
    facts: dict[str, Any]

    @property
    def id(self) -> str:
        return f"{self.work.arm}-seed{self.number}"

    @property
    def url(self) -> str:
        return storage.join(self.work.folder, "students", self.id)


def train_final(final: Final) -> None:
    """Train and store one student of the final round."""
    work = final.work
    # The same seeds for both arms, so that neither is luckier.
    seed = derive_seed(work.common.seed, "sweep/final", final.number)
    result, account = work.fit(final.id, final.student, seed, lambda now, account: None)
    kept = result.kept
    work.put_preview(final.id, kept.predictions)
    record = {
        **final.facts,
        "id": final.id,
        "arm": work.arm,
        "seed": final.number,
        "val_miou": kept.val_miou,
        "val_iou": [None if np.isnan(value) else value for value in kept.val_iou],
        "best_step": kept.step,
        "steps": result.steps,
        "seconds": round(result.seconds, 3),
        "epochs": result.epochs,
        **account.costs(),
        "history": result.history,
    }
    data = work.data
    store.save_student(final.url, result.model, final.student, data.train.images.shape[1], data.num_classes, record)


def run_finals(finals: list[Final], ray_config: RayConfig, stop: Stop, done: Callable[[Final], None]) -> None:
    """Train the final students that do not stand yet, several at a time; ``done`` is told of each that does.

    Raises:
        Stopped: asked to stop; finished students are kept.
        StorageError: the cluster has had no room for one of them for ``ray.start_timeout_s``.
    """
    deadline = ResourceDeadline(ray, ray_config.trial_needs, 1, ray_config.start_timeout_s)
    waiting: list[Final] = []
    for final in finals:
        standing = store.read_record(final.url)
        if standing is None:
            waiting.append(final)
        elif standing["config"] != final.student.dump():
            raise ConflictError(
                f"{final.url}: a student with settings {standing['config']} stands here; expected "
                f"{final.student.dump()}. Remove the folder, or choose another (paths.sweep)"
            )
        else:
            done(final)
    remote = ray.remote(train_final).options(
        num_cpus=ray_config.trial_cpus, num_gpus=ray_config.trial_gpus, max_retries=2
    )
    running: dict[Any, Final] = {}
    try:
        while waiting or running:
            stop.check("finished students are kept")
            deadline.check(at_work=deadline.fits())
            while waiting and len(running) < ray_config.trial_workers:
                final = waiting.pop(0)
                running[remote.remote(final)] = final
            ready, _ = ray.wait(list(running), timeout=0.5)
            for reference in ready:
                ray.get(reference)
                done(running.pop(reference))
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
