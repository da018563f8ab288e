"""Measure dakter against named alternatives in the same run; each suite leaves one JSON record in results/."""

from __future__ import annotations

import importlib
import logging
import os
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, cast

from dakter import storage
from dakter.config import setting
from dakter.errors import ConfigError
from jobs._cli import Job, JobSettings, Plan, Stop, main
from jobs._hardware import hardware
from jobs.suites._science_settings import ScienceConfig

log = logging.getLogger("dakter.jobs.benchmark")

# Suite -> what it measures; the module jobs/suites/<suite>.py runs it.
SUITES = {
    "corpus": "delivery of generated samples, the writer's limit, and reading against zarr, tensorstore and bare GETs",
    "million": "a corpus of a million samples: status, verify, driver memory, resuming at 99 %",
    "encoding": "encodings of soft labels: total variation, bytes, effect on a student",
    "chaos": "generation under kills, lost nodes and store faults: nothing lost, duplicated or altered",
    "science": "students of every arm on real images: the gain from generated pairs, with intervals",
    "scaling": "generation by more and more actors at the pace of a GPU, and commits by many at once",
}


class BenchmarkSettings(JobSettings):
    """What to measure, and how long."""

    suite: Literal["corpus", "million", "encoding", "chaos", "science", "scaling"] = setting(
        "corpus", "; ".join(f"{name}: {text}" for name, text in SUITES.items())
    )
    tier: Literal[
        "short", "full", "search", "headline", "scarce", "scarce-cpu", "ablation", "sim", "sim-cpu", "paper"
    ] = setting(
        "full",
        "short: minutes, to see that it works; full: the figures told; the others: science alone",
    )
    report: bool = setting(False, "science: write the page of the records that are there, do no cell")
    science: ScienceConfig = ScienceConfig()
    results: str = setting("results", "folder of the records", unit="path or s3:// URL", min_length=1)


def run(settings: BenchmarkSettings, stop: Stop) -> Mapping[str, Any]:
    """Run one suite and write ``<results>/<suite>-<tier>.json``, replacing an earlier record only when it is done.

    Suite ``science`` leaves a record a cell instead.
    """
    suite = importlib.import_module(f"jobs.suites.{settings.suite}")
    if settings.suite == "science":
        return dict(suite.run(settings, stop, lambda: provenance(settings)))
    if settings.tier not in ("short", "full"):
        raise ConfigError(f"tier {settings.tier!r} of suite {settings.suite}; expected short or full")
    figures = dict(suite.run(settings, stop))
    record = {**provenance(settings), "figures": figures}
    where = storage.join(settings.results, f"{settings.suite}-{settings.tier}.json")
    storage.put_json(where, record)
    log.info("benchmark: %s", where)
    return {"record": where, **figures}


def provenance(settings: BenchmarkSettings) -> dict[str, Any]:
    """What a record says of its making."""
    return {
        "suite": settings.suite,
        "tier": settings.tier,
        "command": f"python jobs/benchmark.py --suite {settings.suite} --tier {settings.tier}",
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit(),
        "hardware": hardware(),
    }


def commit() -> str:
    """What DAKTER_COMMIT says, for copies of a checkout, else the commit of this one; ``-dirty`` if files differ.

    "unknown" where neither tells.
    """
    told = os.environ.get("DAKTER_COMMIT")
    if told:
        return told
    root = Path(__file__).parents[1]
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude", "*"],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def plan(settings: BenchmarkSettings) -> Plan:
    """For --dry-run."""
    if settings.suite == "science":
        return cast(Plan, importlib.import_module("jobs.suites.science").plan(settings))
    return Plan(
        reads=[],
        computes=[f"suite {settings.suite}, tier {settings.tier}: {SUITES[settings.suite]}"],
        writes=[f"{settings.results}/{settings.suite}-{settings.tier}.json", f"working files below {settings.out}"],
    )


JOB = Job("benchmark", __doc__ or "", BenchmarkSettings, run, plan)

if __name__ == "__main__":
    from jobs.benchmark import JOB  # its importable self: classes in __main__ do not pickle for Ray

    raise SystemExit(main(JOB))
