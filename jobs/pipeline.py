"""The whole job in one command: prepare, train, label if asked, generate, distill, evaluate, promote, and the report.

On one machine the stages run in this process. On a cluster each is submitted as a Ray job of its own, so that it goes
on if this process dies; the same command again attaches to the stage that is running.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from dakter import config, storage
from dakter.config import setting
from dakter.data.tiles import TileCorpus
from dakter.diffusion.label_maps import Candidates
from dakter.diffusion.validation import check_choice
from dakter.errors import ConfigError, GateError
from dakter.students.mix import check_rows
from dakter.tracking_address import tracking_uri
from jobs import distill, evaluate, generate, label, prepare, promote, train
from jobs._cli import Job, Plan, Stop, Verb, execute, main
from jobs._context import begin_run, find_run
from jobs._label_maps import check_label
from jobs._model_sampler import LABELLING, RENDERING, check_mode
from jobs._ray import session
from jobs._report import write_report
from jobs._sources import share_of
from jobs._standing import lines, standing
from jobs._submission import Cluster, SubmissionConfig, on_cluster, put_settings
from jobs._tile_labeller import check_tiles

log = logging.getLogger("dakter.jobs.pipeline")
_MAKING = (generate.JOB, label.JOB)  # corpora
RunStage = Callable[[Job[Any], Any], object]

# Every stage in its order; the label stage runs if it is asked for.
STAGES: tuple[Job[Any], ...] = (
    prepare.JOB,
    train.JOB,
    label.JOB,
    generate.JOB,
    distill.JOB,
    evaluate.JOB,
    promote.JOB,
)


class PipelineSettings(
    promote.PromoteSettings,
    evaluate.EvaluateSettings,
    distill.DistillSettings,
    generate.GenerateSettings,
    train.TrainSettings,
    prepare.PrepareSettings,
):
    """Every section of every stage; a stage gets those it has."""

    label: bool = setting(
        False, "label the real unlabelled tiles too (jobs/label.py), for distill to mix in (students.unlabelled_share)"
    )
    submission: SubmissionConfig = SubmissionConfig()


def stages_of(settings: PipelineSettings) -> tuple[Job[Any], ...]:
    """The stages that are asked for, in their order."""
    return tuple(job for job in STAGES if settings.label or job is not label.JOB)


def stage_settings(job: Job[Any], settings: PipelineSettings) -> Any:
    """The part of the pipeline's settings that one stage takes."""
    data = settings.dump()
    if settings.label and job is distill.JOB:
        data["paths"]["labelled"] = settings.place("labelled")
    return config.load(job.settings, {key: data[key] for key in job.settings.model_fields})


def run(settings: PipelineSettings, stop: Stop) -> dict[str, Any]:
    """Run the stages in order, each resuming where it stands; a challenger that loses is an outcome, not a failure."""
    _check_settings(settings)
    stages = stages_of(settings)
    minutes: dict[str, float] = {}
    with _submitted(settings, stop) if on_cluster() else _in_process(settings, stop) as run_stage:
        for number, job in enumerate(stages, 1):
            stop.check(f"stages before {job.name} are done")
            log.info("stage %d of %d: %s", number, len(stages), job.name)
            if job is train.JOB:
                _check_with_tiles(settings)
            try:
                run_stage(job, stage_settings(job, settings))
                record = storage.read_json(storage.join(settings.out, "stages", f"{job.name}.json"))
                minutes[job.name] = round(record["seconds"] / 60, 2)
            except GateError as error:
                log.info("the gate said no: %s", error)
    told = [job.name for job in STAGES if job in stages or settings.paths.labelled]  # labelled before, by hand
    page = write_report(settings, told, settings.to_yaml())
    return {"report": page, "minutes": minutes}


@contextmanager
def _in_process(settings: PipelineSettings, stop: Stop) -> Iterator[RunStage]:
    """Stages run here, in one Ray session."""
    with session(settings.ray):
        stop.install()
        yield lambda job, own: execute(job, own, stop)


@contextmanager
def _submitted(settings: PipelineSettings, stop: Stop) -> Iterator[RunStage]:
    """Stages run as jobs of the cluster; this process only watches."""
    if not storage.is_remote(settings.out):
        log.warning("out is %s; every node of the cluster must see this very folder", settings.out)
    cluster = Cluster.connect(begin_run(settings.out), settings.submission)

    def run_stage(job: Job[Any], own: Any) -> None:
        where = put_settings(settings.out, job.name, own)
        gpus = settings.submission.evaluate_gpus if job is evaluate.JOB else 0.0
        computes = job in (prepare.JOB, evaluate.JOB, promote.JOB)
        cluster.run_stage(job.name, where, computes=computes, gpus=gpus, stop=stop)

    yield run_stage


def status(settings: PipelineSettings, stop: Stop) -> dict[str, Any]:
    """Print where the run stands; from storage alone, and from the cluster if there is one."""
    run_id = find_run(settings.out)
    known = on_cluster() and run_id is not None
    found = standing(
        settings.out,
        run_id,
        {job.name: stage_settings(job, settings) for job in stages_of(settings)},
        corpora={job.name: stage_settings(job, settings).url for job in stages_of(settings) if job in _MAKING},
        report=f"{settings.place('report')}/report.html",
        submissions=Cluster.connect(run_id or "", settings.submission).submissions() if known else [],
    )
    for line in lines(found):
        log.info("%s", line)
    return found


def _check_settings(settings: PipelineSettings) -> None:
    """What settings alone tell of stages that come hours later.

    Raises:
        ConfigError: no tracking server on a cluster, or settings that do not go together.
    """
    tracking_uri(settings.tracking.uri, settings.out)
    mode = settings.diffusion.mode
    check_choice(settings.train, settings.diffusion)
    with_labelled = settings.label or settings.paths.labelled is not None
    share = share_of(settings.students, settings.paths.accept, with_labelled=with_labelled)
    check_rows(share, settings.sweep.synthetic_share, settings.students.batch_size)
    if settings.label:
        check_mode(mode, "label", LABELLING)
    if settings.render.renders:
        check_mode(mode, "generate", RENDERING)
        check_label(settings.render, settings.soft_label)
        if settings.render.maps != "masks" and not with_labelled:
            raise ConfigError(
                f"render.maps is {settings.render.maps} without labelled tiles; expected --label true, which makes "
                "them, or paths.labelled where they stand; or render.maps masks"
            )
    choice = settings.promotion.candidate
    if choice != "student" and (mode != "independent" or not settings.evaluate.joint_model):
        raise ConfigError(
            f"promotion.candidate is {choice} with diffusion.mode {mode} and evaluate.joint_model "
            f"{str(settings.evaluate.joint_model).lower()}; expected mode independent and true, without which there is "
            "no joint model to stand: set them, or promotion.candidate student"
        )


def _check_with_tiles(settings: PipelineSettings) -> None:
    """What can be told once tiles are there, hours before it matters: floors name classes, there is what to label."""
    tiles = TileCorpus.open(settings.place("tiles"))
    if settings.label:
        check_tiles(tiles)
    table = tiles.manifest.class_table
    unknown = sorted(set(settings.promotion.min_class_iou) - set(table.names))
    if unknown:
        raise ConfigError(
            f"setting promotion.min_class_iou names {', '.join(unknown)}; expected some of {', '.join(table.names)}"
        )
    maps = Candidates(settings.render, table.names, settings.corpus.seed)
    if settings.render.renders and settings.render.maps == "masks":
        train = tiles.read("train")
        maps.offer(train.images, train.labels, "masks")
        maps.pool(turned=False)


def plan(settings: PipelineSettings) -> Plan:
    """The plans of all stages, each line with its stage."""
    plans = {job.name: job.plan(stage_settings(job, settings)) for job in stages_of(settings)}
    return Plan(
        reads=[f"{name}: {line}" for name, part in plans.items() for line in part.reads],
        computes=[f"{name}: {line}" for name, part in plans.items() for line in part.computes],
        writes=[f"{name}: {line}" for name, part in plans.items() for line in part.writes]
        + [f"report {settings.place('report')}/report.html and report.json"],
    )


JOB = Job(
    "pipeline",
    __doc__ or "",
    PipelineSettings,
    run,
    plan,
    verbs={
        "status": Verb("where the run stands, from storage and, with RAY_ADDRESS set, from the cluster", status),
    },
)

if __name__ == "__main__":
    from jobs.pipeline import JOB  # its importable self: classes in __main__ do not pickle for Ray

    raise SystemExit(main(JOB))
