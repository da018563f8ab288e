"""What every job shares: flags from settings, presets, ``--dry-run``, logs, stop signals, exit status, stage record.

A job module declares ``JOB = Job(...)`` and ends with::

    if __name__ == "__main__":
        from jobs.generate import JOB  # its importable self: classes in __main__ do not pickle for Ray
        raise SystemExit(main(JOB))
"""

from __future__ import annotations

import logging
import os
import platform
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata, resources
from typing import Any, Generic, TypeVar

from dakter import config, storage
from dakter.config import Config, setting
from dakter.errors import ConfigError, DakterError, GateError, Stopped
from dakter.progress import duration
from jobs import _context, _environment, _flags

log = logging.getLogger("dakter.jobs")

# Every table that a preset or a file may hold; a job takes those it has and leaves the others to their jobs.
SECTIONS = (
    "out",
    "log_level",
    "log_format",
    "label",
    "paths",
    "data",
    "tiles",
    "network",
    "diffusion",
    "train",
    "sampler",
    "soft_label",
    "render",
    "corpus",
    "budget",
    "curate",
    "students",
    "sweep",
    "evaluate",
    "promotion",
    "tracking",
    "ray",
    "submission",
)


_REFUSED = {"promoted": False}  # figures of a promotion that the gate refused


class Paths(Config):
    """Where each artefact stands; null means below ``out``, but for ``accept``, and ``labelled`` to distill."""

    tiles: str | None = setting(None, "tile corpus; null: <out>/tiles", unit="path or s3:// URL")
    model: str | None = setting(None, "joint diffusion model; null: <out>/model", unit="path or s3:// URL")
    corpus: str | None = setting(None, "synthetic corpus; null: <out>/corpus", unit="path or s3:// URL")
    labelled: str | None = setting(
        None,
        "corpus of real unlabelled tiles with the model's labels; null: <out>/labelled to label and to generate (which "
        "reads it where render.maps says so), none to distill",
        unit="path or s3:// URL",
    )
    curation: str | None = setting(None, "accept-list; null: <out>/curation", unit="path or s3:// URL")
    accept: str | None = setting(
        None,
        "accept-list that distill keeps to, such as <out>/curation/accept.json; null: every sample",
        unit="path or s3:// URL",
    )
    sweep: str | None = setting(None, "students of the sweep; null: <out>/sweep", unit="path or s3:// URL")
    evaluation: str | None = setting(None, "evaluation; null: <out>/evaluation", unit="path or s3:// URL")
    promotion: str | None = setting(None, "promotion decision; null: <out>/promotion", unit="path or s3:// URL")
    report: str | None = setting(None, "report.html and report.json; null: <out>/report", unit="path or s3:// URL")


class JobSettings(Config):
    """Settings that every job has."""

    out: str = setting(
        "runs/demo",
        "folder of the run; every artefact stands below it unless paths say otherwise",
        unit="path or s3:// URL",
        min_length=1,
    )
    log_level: str = setting("INFO", "DEBUG, INFO, WARNING or ERROR", pattern="^(DEBUG|INFO|WARNING|ERROR)$")
    log_format: str = setting(
        "text", "text: readable lines; json: one object a line, for a log store", pattern="^(text|json)$"
    )
    paths: Paths = Paths()

    def place(self, name: str) -> str:
        """URL of an artefact, by its name in ``paths``."""
        return getattr(self.paths, name) or storage.join(self.out, name)


S = TypeVar("S", bound=JobSettings)


@dataclass(frozen=True)
class Plan:
    """What a run would do, for ``--dry-run``: one line each."""

    reads: list[str]
    computes: list[str]
    writes: list[str]


@dataclass
class Stop:
    """Set by SIGTERM or SIGINT; long loops ask ``stop()`` at safe points and raise ``Stopped`` with work kept."""

    requested: bool = False

    def __call__(self) -> bool:
        return self.requested

    def install(self) -> None:
        """Handle signals (again: ray.init() replaces handlers, so call this after it). Main thread only."""

        def handle(number: int, frame: Any) -> None:
            if self.requested:  # asked twice: at once
                raise KeyboardInterrupt
            self.requested = True
            log.warning(
                "%s: stopping at the next safe point; work that is finished is kept", signal.Signals(number).name
            )

        try:
            signal.signal(signal.SIGTERM, handle)
            signal.signal(signal.SIGINT, handle)
        except ValueError:  # not in the main thread (a test): whoever is there has the signals
            log.debug("signal handlers not installed outside the main thread")

    def check(self, kept: str) -> None:
        """Raise Stopped if a stop was asked for; ``kept`` says what survives."""
        if self.requested:
            raise Stopped(f"stopped as asked; {kept}; the same command resumes")


@dataclass(frozen=True)
class Verb:
    """A subcommand of a job.

    Attributes:
        summary: one line for ``--help``.
        run: does the work, as ``Job.run``; takes a third argument, the verb's own options, if it has any.
        options: settings of this verb alone, given as plain flags (``--deep``); strict like all others.
    """

    summary: str
    run: Callable[..., Mapping[str, Any]]
    options: type[Config] | None = None


@dataclass(frozen=True)
class Job(Generic[S]):
    """One entry point.

    Attributes:
        name: stage name, e.g. ``"generate"``.
        summary: one sentence for ``--help``.
        settings: its settings, a subset of the pipeline's.
        run: does the work; returns the figures of the stage record (``num_...``, ``..._per_second``, ...), or
            ``{"already_done": True, ...}`` when nothing was left to do.
        plan: what ``run`` would read, compute and write.
        verbs: further subcommands by name.
    """

    name: str
    summary: str
    settings: type[S]
    run: Callable[[S, Stop], Mapping[str, Any]]
    plan: Callable[[S], Plan]
    verbs: Mapping[str, Verb] = field(default_factory=dict)


def presets() -> list[str]:
    """Names of the presets that come with dakter."""
    folder = resources.files("jobs") / "presets"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_preset(name: str) -> dict[str, Any]:
    """The tables of a preset; raises ConfigError for an unknown name."""
    if name not in presets():
        raise ConfigError(f"--preset {name}: unknown; expected one of {', '.join(presets())}")
    text = (resources.files("jobs") / "presets" / f"{name}.yaml").read_text()
    return config.read_yaml(text, where=f"preset {name}")


def resolve(
    settings: type[S], *, preset: str | None = None, file: str | None = None, overrides: Mapping[str, Any] | None = None
) -> S:
    """Settings from defaults, then preset, then file, then overrides (dotted key -> value)."""
    data: dict[str, Any] = {}
    for where, tables in (
        (f"preset {preset}", load_preset(preset) if preset else {}),
        (str(file), _read_file(file) if file else {}),
    ):
        unknown = sorted(set(tables) - set(SECTIONS))
        if unknown:
            raise ConfigError(f"{where}: unknown tables {', '.join(unknown)}; expected some of {', '.join(SECTIONS)}")
        data = config.merge(data, {key: value for key, value in tables.items() if key in settings.model_fields})
    if preset and "out" not in data:
        data["out"] = f"runs/{preset}"
    for key, value in (overrides or {}).items():
        data = config.merge(data, config.nest(key, value))
    return config.load(settings, data, where=f"settings ({file} among them)" if file else "settings")


def anchored(settings: S) -> S:
    """The same settings with every local place absolute: workers do not stand where the command was typed."""
    places = {name: url and storage.absolute(url) for name, url in settings.paths.dump().items()}
    return settings.model_copy(update={"out": storage.absolute(settings.out), "paths": Paths(**places)})


def _read_file(file: str) -> dict[str, Any]:
    try:
        return config.read_yaml(storage.read_bytes(file).decode(), where=file)
    except (FileNotFoundError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {file}: {error}; expected a YAML file") from error


def versions() -> dict[str, str]:
    """Releases of Python and of the packages that decide results."""
    names = ("dakter", "torch", "diffusers", "segmentation-models-pytorch", "zarr", "ray", "mlflow")
    found = {name: metadata.version(name) for name in names if _installed(name)}
    return {"python": platform.python_version(), **found}


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def stage_record(job: Job[Any], settings: JobSettings, figures: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """What a stage leaves below ``<out>/stages``: figures, settings, versions, hardware in words."""
    return {
        "stage": job.name,
        "run": _context.current().run,
        "seconds": round(seconds, 3),
        "figures": dict(figures),
        "settings": settings.dump(),
        "settings_digest": settings.digest(),
        "versions": versions(),
        "hardware": {"machine": platform.machine(), "cpus": os.cpu_count()},
    }


def execute(job: Job[S], settings: S, stop: Stop) -> dict[str, Any]:
    """Run a job and write its stage record; a run that found everything done keeps the earlier record."""
    with _context.working_on(_context.begin_run(settings.out), job.name):
        return _execute(job, settings, stop)


def _execute(job: Job[S], settings: S, stop: Stop) -> dict[str, Any]:
    start = time.monotonic()
    where = storage.join(settings.out, "stages", f"{job.name}.json")
    try:
        figures = dict(job.run(settings, stop))
    except GateError:  # a no is an outcome too: an earlier yes must not stay on record, an earlier no may
        if not storage.exists(where) or storage.read_json(where)["figures"] != _REFUSED:
            storage.put_json(where, stage_record(job, settings, _REFUSED, time.monotonic() - start))
        raise
    seconds = time.monotonic() - start
    if figures.get("already_done") and storage.exists(where):
        earlier = dict(storage.read_json(where))
        # Else it tells of another artefact; a place that there was no setting for was null.
        if not config.differences(settings.dump()["paths"], earlier["settings"].get("paths", {})):
            log.info("%s: already done, nothing to do", job.name)
            return earlier
    record = stage_record(job, settings, figures, seconds)
    storage.put_json(where, record)
    log.info("%s: done in %s", job.name, duration(seconds))
    return record


def main(job: Job[Any], argv: Sequence[str] | None = None) -> int:
    """Parse, resolve, run; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        options = vars(_flags.parser(job, presets()).parse_args(arguments))
    except SystemExit as error:
        return int(error.code or 0)
    verb, preset, file = options.pop("verb", None), options.pop("preset"), options.pop("config")
    dry_run, as_json = options.pop("dry_run"), options.pop("json")
    if options.pop("status", False):
        verb = verb or "status"
    _context.enter(_context.RunContext(stage=job.name))
    try:
        verb_options = _flags.verb_options(job, verb, options)
        kinds = {flag.key: flag.type_name for flag in config.flags(job.settings)}
        overrides = {key: config.parse_value(key, value, kinds[key]) for key, value in options.items()}
        settings = resolve(job.settings, preset=preset, file=file, overrides=overrides)
        settings = anchored(settings)
        context = _context.RunContext(stage=job.name, log_level=settings.log_level, log_format=settings.log_format)
        _context.enter(context)
        _environment.check()
        if dry_run and verb:
            raise ConfigError(f"--dry-run plans the job itself; leave it out with {verb}, or leave out {verb}")
        if dry_run:
            print(_describe(job, settings))
            return 0
        stop = Stop()
        stop.install()
        if verb:
            _context.enter(replace(context, run=_context.find_run(settings.out) or context.run))
            outcome = dict(job.verbs[verb].run(settings, stop, *([verb_options] if verb_options else [])))
        else:
            _context.enter(replace(context, run=_context.begin_run(settings.out)))  # errors below tell it too
            outcome = _execute(job, settings, stop)
        if as_json:
            sys.stdout.write(storage.to_json_bytes(outcome).decode())
        return 0
    except DakterError as error:
        log.log(logging.WARNING if isinstance(error, Stopped) else logging.ERROR, "%s: %s", job.name, error)
        return error.exit_status
    except FileNotFoundError as error:
        log.error("%s: %s; check the path or bucket, or run the stage that makes it", job.name, error)
        return 1
    except KeyboardInterrupt:
        log.warning("%s: stopped at once; what was committed is kept; the same command resumes", job.name)
        return 4
    except Exception:
        log.error("%s: failed\n%s", job.name, traceback.format_exc())
        return 1


def _describe(job: Job[S], settings: S) -> str:
    plan = job.plan(settings)
    lines = [f"# {job.name}: settings as resolved", settings.to_yaml().rstrip()]
    for title, items in (("would read", plan.reads), ("would compute", plan.computes), ("would write", plan.writes)):
        lines += [f"# {title}:", *(f"#   {item}" for item in items)]
    return "\n".join(lines)
