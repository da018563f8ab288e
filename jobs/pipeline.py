"""The whole job in one command: prepare, train, generate, distill, evaluate, promote, and the report."""

from __future__ import annotations

import logging
from typing import Any

from dakter import config
from dakter.data.tiles import TileCorpus
from dakter.errors import ConfigError, GateError
from dakter.tracking_address import tracking_uri
from jobs import distill, evaluate, generate, prepare, promote, train
from jobs._cli import Job, Plan, Stop, execute, main
from jobs._ray import session
from jobs._report import write_report

log = logging.getLogger("dakter.jobs.pipeline")

STAGES: tuple[Job[Any], ...] = (prepare.JOB, train.JOB, generate.JOB, distill.JOB, evaluate.JOB, promote.JOB)


class PipelineSettings(
    promote.PromoteSettings,
    evaluate.EvaluateSettings,
    distill.DistillSettings,
    generate.GenerateSettings,
    train.TrainSettings,
    prepare.PrepareSettings,
):
    """Every section of every stage; a stage gets those it has."""


def stage_settings(job: Job[Any], settings: PipelineSettings) -> Any:
    """The part of the pipeline's settings that one stage takes."""
    data = settings.dump()
    return config.load(job.settings, {key: data[key] for key in job.settings.model_fields})


def run(settings: PipelineSettings, stop: Stop) -> dict[str, Any]:
    """Run the stages in order, each resuming where it stands; a challenger that loses is an outcome, not a failure."""
    tracking_uri(settings.tracking.uri, settings.out)  # an address that is missing is told before hours are spent
    minutes: dict[str, float] = {}
    with session(settings.ray):
        stop.install()
        for number, job in enumerate(STAGES, 1):
            stop.check(f"stages before {job.name} are done")
            log.info("stage %d of %d: %s", number, len(STAGES), job.name)
            if job is train.JOB:
                _check_names(settings)
            try:
                record = execute(job, stage_settings(job, settings), stop)
                minutes[job.name] = round(record["seconds"] / 60, 2)
            except GateError as error:
                log.info("the gate said no: %s", error)
    page = write_report(settings, [job.name for job in STAGES], settings.to_yaml())
    return {"report": page, "minutes": minutes}


def _check_names(settings: PipelineSettings) -> None:
    """Once the tiles tell the classes: floors by class name must name some, before they are needed hours later."""
    table = TileCorpus.open(settings.place("tiles")).manifest.class_table
    unknown = sorted(set(settings.promotion.min_class_iou) - set(table.names))
    if unknown:
        raise ConfigError(
            f"setting promotion.min_class_iou names {', '.join(unknown)}; expected some of {', '.join(table.names)}"
        )


def plan(settings: PipelineSettings) -> Plan:
    """The plans of all stages, each line with its stage."""
    plans = {job.name: job.plan(stage_settings(job, settings)) for job in STAGES}
    return Plan(
        reads=[f"{name}: {line}" for name, part in plans.items() for line in part.reads],
        computes=[f"{name}: {line}" for name, part in plans.items() for line in part.computes],
        writes=[f"{name}: {line}" for name, part in plans.items() for line in part.writes]
        + [f"report {settings.place('report')}/report.html and report.json"],
    )


JOB = Job("pipeline", __doc__ or "", PipelineSettings, run, plan)

if __name__ == "__main__":
    from jobs.pipeline import JOB  # its importable self: classes in __main__ do not pickle for Ray

    raise SystemExit(main(JOB))
