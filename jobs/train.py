"""Train the joint diffusion model of images and soft labels with Ray Train, from a tile corpus into a model folder."""

from __future__ import annotations

import logging
import os
import statistics
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from dakter import config, storage
from dakter.data.tiles import TileCorpus
from dakter.diffusion.balance import chosen_b
from dakter.diffusion.fit import TrainConfig, TrainingData, checkpoint_pipeline, fit
from dakter.diffusion.network import NetworkConfig
from dakter.diffusion.pipeline import open_model, save_model
from dakter.diffusion.schedule import DiffusionConfig
from dakter.diffusion.validation import check_choice
from dakter.errors import ConfigError, ConflictError, DakterError, DataError, IntegrityError, Stopped
from dakter.progress import Progress
from dakter.report.grids import samples_figure
from dakter.tracking import Tracker, TrackingConfig
from jobs import _context, _metrics
from jobs._cli import Job, JobSettings, Plan, Stop, main
from jobs._heartbeat import Heartbeat, Signals
from jobs._ray import RayConfig, ResourceDeadline, beside_driver, draining, session, wait_for_resources
from jobs._redone import Account, total

log = logging.getLogger("dakter.jobs.train")

# What is logged of a look at val, in this order.
_LOOKED_AT = ("step", "val_nll", "train_nll", "val_miou")
# A change to more workers costs a start and the steps since the last checkpoint, so it is not looked for all the time.
_RESIZE_S = 300.0


class TrainSettings(JobSettings):
    """Sections that training reads."""

    network: NetworkConfig = NetworkConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    train: TrainConfig = TrainConfig()
    tracking: TrackingConfig = TrackingConfig()
    ray: RayConfig = RayConfig()


class Book:
    """What rank 0 tells the tracking server while it trains: curves, and a grid of samples at every checkpoint."""

    def __init__(self, settings: TrainSettings, tiles: TileCorpus, run_id: str):
        tracker = Tracker.open(settings.tracking, settings.out)
        self.run = tracker.run(run_id, name="train", tags={"dakter.stage": "train"})
        self.run.params({"network": settings.network.dump(), "train": settings.train.dump()})
        self.run.dataset("tiles", tiles.url, tiles.manifest.digest, "train")
        self.table = tiles.manifest.class_table

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.run.metrics({key: value for key, value in metrics.items() if key != "step"}, step=step)

    def samples(self, folder: Path, step: int, device: str) -> None:
        """Four pairs of the averaged weights in ``folder``: image, class map, the probability of each class."""
        pairs = cast(Any, checkpoint_pipeline(folder)).to(device)(batch_size=4, num_inference_steps=10, seed=0)
        images, soft = (np.asarray(part.float().cpu()) for part in (pairs.images, pairs.soft_labels))
        figure = samples_figure(images, soft, self.table.names, self.table.colours)
        self.run.figure(figure, f"samples-{step:07d}.png")


def training_data(
    tiles: TileCorpus, diffusion: DiffusionConfig, *, with_unlabelled: bool = True, with_val: bool = False
) -> TrainingData:
    """Plain arrays of the train split (and the unlabelled images), with b from the train split unless it is set.

    ``with_val``: and val, to look at p(y | x) of.
    """
    train, val = tiles.read("train"), tiles.read("val") if with_val else None
    unlabelled = tiles.read("unlabelled").images if with_unlabelled else None
    manifest = tiles.manifest
    return TrainingData(
        images=train.images,
        labels=train.labels,
        unlabelled=unlabelled if unlabelled is not None and len(unlabelled) else None,
        class_table=manifest.class_table,
        value_range=manifest.value_range,
        bands=manifest.bands,
        b=chosen_b(diffusion.b, diffusion.b_variant, manifest.b_rms, manifest.b_std),
        val_images=val.images if val else None,
        val_labels=val.labels if val else None,
    )


def identity(settings: TrainSettings, tiles_digest: str) -> dict[str, Any]:
    """What makes a model another model; worker counts and log intervals do not."""
    return {
        "network": settings.network.dump(),
        "diffusion": settings.diffusion.dump(),
        "train": settings.train.identity(),
        "tiles_digest": tiles_digest,
    }


def train_loop(parameters: dict[str, Any]) -> None:
    """What every worker runs; rank 0 writes the model."""
    import ray
    import ray.train

    settings = config.load(TrainSettings, parameters["settings"])
    _context.enter(parameters["context"])
    rank = ray.train.get_context().get_world_rank()
    torch.set_num_threads(settings.ray.train_cpus)
    tiles = TileCorpus.open(settings.place("tiles"))
    device = str(ray.train.torch.get_device())
    book = Book(settings, tiles, parameters["run_id"]) if rank == 0 else None
    progress: Progress | None = None
    signals = parameters["signals"]
    heartbeat = Heartbeat(signals, ray.get_runtime_context().get_node_id())  # also says that the worker has started

    def on_checkpoint(folder: Path, metrics: dict[str, float]) -> None:
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(str(folder)))
        if book:  # after it is safe: a node may be about to leave
            book.samples(folder, int(metrics["step"]), device)
        if not metrics["ended"]:
            heartbeat.linger()

    def on_step(step: int) -> None:
        heartbeat.step = step

    def on_log(step: int, metrics: dict[str, float]) -> None:
        if rank:
            return
        if book:
            book.log(step, metrics)
        _metrics.training(metrics, _context.labels())
        assert progress is not None
        progress.advance(step - progress.done, f"loss {metrics['loss']:.4f}")

    def on_look(row: dict[str, float]) -> None:
        if book:
            book.log(int(row["step"]), row)
        log.info("p(y|x) after step %d: val NLL %.4f, train %.4f; val mIoU %.3f", *(row[key] for key in _LOOKED_AT))

    def run(resume: Path | None) -> None:
        nonlocal progress
        done = int(storage.read_json(str(resume / "state.json"))["step"]) if resume else 0
        progress = Progress(log, "train", settings.train.steps, "steps", done=done)
        if rank == 0:
            ray.get(signals.begin.remote(done))
        data = training_data(tiles, settings.diffusion, with_val=settings.train.validate_every is not None)
        result = fit(
            settings.network,
            settings.diffusion,
            settings.train,
            data,
            resume=resume,
            on_checkpoint=on_checkpoint,
            on_log=on_log,
            should_stop=heartbeat.should_stop,
            should_checkpoint=heartbeat.should_checkpoint,
            on_step=on_step,
            on_look=on_look,
            device=device,
        )
        if rank == 0:
            if result.kept_step < result.steps or result.steps < settings.train.steps:
                log.info(
                    "%d of %d steps done; the model is that of step %d, of the lowest NLL on val",
                    result.steps,
                    settings.train.steps,
                    result.kept_step,
                )
            account = ray.get(signals.account.remote())
            record = {
                "identity": identity(settings, tiles.manifest.digest),
                "tiles_digest": tiles.manifest.digest,
                "source": tiles.manifest.source,
                "licence": tiles.manifest.licence,
                "citation": tiles.manifest.citation,
                "b": data.b,
                "steps": result.steps,
                "kept_step": result.kept_step,
                "seconds": result.seconds,
                "num_labelled": len(data.images),
                "num_unlabelled": data.num_unlabelled,
                "workers": ray.train.get_context().get_world_size(),
                **account.costs(),
                "device": device,
                "history": result.history,
                "curve": result.curve,
            }
            save_model(result.pipeline, settings.place("model"), record)
        if book:
            book.run.end()

    checkpoint = ray.train.get_checkpoint()
    try:
        if checkpoint is None:
            run(None)
        else:
            with checkpoint.as_directory() as folder:
                log.info("resuming from %s", Path(folder).name)
                run(Path(folder))
    except Stopped:
        log.info("rank %d stopped after its checkpoint", rank)
        if book:
            book.run.end("KILLED")
    except (ConfigError, DataError, ConflictError, IntegrityError) as error:
        ray.get(signals.fail.remote(error))  # trying again would not help, so Ray is not told


def _fit_in_thread(trainer: Any) -> tuple[threading.Thread, list[BaseException]]:
    """Train beside the main thread, which keeps watch over signals and deadlines."""
    failures: list[BaseException] = []

    def work() -> None:
        try:
            trainer.fit()
        except BaseException as error:  # handed to the main thread, which raises it
            failures.append(error)

    thread = threading.Thread(target=work, name="trainer", daemon=True)
    thread.start()
    return thread, failures


def _cause(error: BaseException) -> BaseException:
    """The worker's own named error inside Ray's wrapping, if there is one."""
    for worker_error in getattr(error, "worker_failures", {}).values():
        inner = getattr(worker_error, "_base_exc", worker_error)
        inner = getattr(inner, "cause", None) or inner
        if isinstance(inner, DakterError):
            return inner
    return error


def _figures(settings: TrainSettings, record: Mapping[str, Any], digest: str) -> dict[str, Any]:
    return {
        "model": settings.place("model"),
        "model_digest": digest,
        "b": record["b"],
        "num_steps": record["steps"],
        "kept_step": record.get("kept_step", record["steps"]),  # models of before there was a choice lack it
        **total(record),
        "num_labelled": record["num_labelled"],
        "num_unlabelled": record["num_unlabelled"],
        "train_seconds": record["seconds"],
        "samples_per_second": statistics.median(row["samples_per_second"] for row in record["history"]),
        "last": record["history"][-1],
    }


def run(settings: TrainSettings, stop: Stop) -> dict[str, Any]:
    """Train, or continue, or say that it is done."""
    check_choice(settings.train, settings.diffusion)
    if settings.train.validate_every and settings.diffusion.mode == "joint":
        log.info("train.validate_every is left out: a model of diffusion.mode joint knows no p(y|x) to look at")
    tiles = TileCorpus.open(settings.place("tiles"))
    model = settings.place("model")
    wanted = identity(settings, tiles.manifest.digest)
    if storage.exists(storage.join(model, "model.json")):
        opened = open_model(model)
        different = config.differences(wanted, opened.record["identity"])
        if different:
            raise ConflictError(
                f"{model}: holds a model trained with other settings; choose another --out or --paths.model, or remove "
                "it. Different: " + "; ".join(different)
            )
        return {**_figures(settings, opened.record, opened.digest), "already_done": True}
    if settings.train.batch_size < settings.ray.train_workers:
        raise ConfigError(
            f"train.batch_size is {settings.train.batch_size}; expected a row for each of ray.train_workers, "
            f"{settings.ray.train_workers}"
        )
    storage.check_writable(model)
    tracker = Tracker.open(settings.tracking, settings.out)  # makes a fresh database once, before any worker needs it
    tracking = settings.tracking.model_copy(update={"uri": tracker.uri})
    settings = settings.model_copy(update={"tracking": tracking})
    with session(settings.ray) as ray:
        stop.install()
        _train(settings, stop, ray, config.digest_json(wanted)[:12])
    opened = open_model(model)
    return _figures(settings, opened.record, opened.digest)


def _train(settings: TrainSettings, stop: Stop, ray: Any, run_id: str) -> None:
    from ray import train as ray_train
    from ray.train.torch import TorchTrainer

    from jobs._torch_group import GroupConfig

    api = cast(Any, ray_train)  # it is typed as its first version

    setup = settings.ray
    needs, fewest = setup.train_needs, setup.train_fewest
    timeout_s = setup.start_timeout_s
    wait_for_resources(ray, needs, fewest, timeout_s=timeout_s, stop=stop, wish=setup.train_workers)
    work = settings.place("model").rstrip("/") + ".checkpoints"
    signals = beside_driver(ray, Signals)
    trainer = TorchTrainer(
        train_loop,
        train_loop_config={
            "settings": settings.dump(),
            "signals": signals,
            "run_id": f"train-{run_id}",
            "context": _context.current(),
        },
        scaling_config=api.ScalingConfig(
            num_workers=setup.train_workers if fewest == setup.train_workers else (fewest, setup.train_workers),
            use_gpu=setup.train_gpus > 0,
            resources_per_worker=needs,
            elastic_resize_monitor_interval_s=_RESIZE_S,
        ),
        torch_config=GroupConfig(backend="nccl" if setup.train_gpus else "gloo", timeout_s=120),
        run_config=api.RunConfig(
            name=f"train-{run_id}",  # the same settings and data find their checkpoints again
            storage_path=work if storage.is_remote(work) else os.path.abspath(storage.local_path(work)),
            failure_config=api.FailureConfig(max_failures=setup.max_failures, max_preemption_failures=-1),
            checkpoint_config=api.CheckpointConfig(num_to_keep=2),
        ),
    )
    thread, failures = _fit_in_thread(trainer)
    deadline, beats, account = ResourceDeadline(ray, needs, fewest, timeout_s), 0, Account()
    while thread.is_alive():
        thread.join(0.5)
        before = beats
        # Every time: an actor that was restarted has forgotten it.
        beats, account = ray.get(signals.tell.remote(stop(), draining(ray), account))
        deadline.check(at_work=beats != before)  # Ray itself would wait for ever
    if failures:
        raise _cause(failures[0])
    error = ray.get(signals.failure.remote())
    if error is not None:
        raise error
    if not storage.exists(storage.join(settings.place("model"), "model.json")):
        stop.requested = True  # every worker ended after a checkpoint: only a wish to stop does that
        stop.check(f"checkpoints are in {work}")
    storage.remove_folder(work)


def _workers(setup: RayConfig) -> str:
    return f"{setup.train_fewest} to {setup.train_workers}" if setup.train_workers_min else str(setup.train_workers)


def plan(settings: TrainSettings) -> Plan:
    """For --dry-run."""
    train, setup, looks = settings.train, settings.ray, settings.train.validate_every
    return Plan(
        reads=[f"tile corpus {settings.place('tiles')} (train and unlabelled{', val' if looks else ''} alone)"],
        computes=[
            f"{'up to ' if train.patience else ''}{train.steps} steps of {train.batch_size} on {_workers(setup)} "
            f"worker(s), each with {setup.train_cpus} CPU(s) and {setup.train_gpus:g} GPU(s)",
            *([f"a look at val every {looks} steps; the {train.keep} weights are kept"] if looks else []),
        ],
        writes=[
            f"model {settings.place('model')}",
            "curves and sample grids, on the tracking server",
            f"checkpoints {settings.place('model')}.checkpoints, removed at the end",
        ],
    )


JOB = Job("train", "Train the joint diffusion model of SAR images and soft labels.", TrainSettings, run, plan)

if __name__ == "__main__":
    from jobs.train import JOB  # its importable self: classes in __main__ do not pickle for Ray

    raise SystemExit(main(JOB))
