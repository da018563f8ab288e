"""Which run and stage a process works for: in every log line, on every metric, in the names of submissions.

A driver enters its context when it starts, and hands ``current()`` to its workers, which enter it in turn.
"""

from __future__ import annotations

import datetime
import logging
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from dakter import progress, storage
from jobs import _logs, _metrics

_FILE = "run.json"
_NAME_LENGTH = 24


@dataclass(frozen=True)
class RunContext:
    """What a process works for, and how it logs.

    Attributes:
        run: id of the run, ``"-"`` as long as none is known.
        stage: name of the job, ``"-"`` outside of jobs.
        log_level: of dakter's own loggers.
        log_format: ``"text"`` or ``"json"``.
    """

    run: str = "-"
    stage: str = "-"
    log_level: str = "INFO"
    log_format: str = "text"


_current = RunContext()


def current() -> RunContext:
    """The context of this process."""
    return _current


def enter(context: RunContext) -> None:
    """Work for ``context`` from now on: its labels on log lines and metrics, its level and format."""
    global _current
    _current = context
    _logs.install(context.log_format, lambda: (_current.run, _current.stage))
    logging.getLogger("dakter").setLevel(context.log_level)
    progress.observe(_watch)


def _watch(seen: progress.Progress) -> None:
    _metrics.progress(seen, labels())


def labels() -> dict[str, str]:
    """Run and stage, as metrics carry them."""
    return {"run": _current.run, "stage": _current.stage}


@contextmanager
def working_on(run: str, stage: str) -> Iterator[None]:
    """``run`` and ``stage`` for a while: a pipeline in one process goes through several stages."""
    before = _current
    enter(replace(before, run=run, stage=stage))
    try:
        yield
    finally:
        enter(before)


def find_run(out: str) -> str | None:
    """The id of the run in the folder ``out``, None if none was begun there."""
    try:
        return str(storage.read_json(storage.join(out, _FILE))["run"])
    except FileNotFoundError:
        return None


def begin_run(out: str) -> str:
    """The id of the run in ``out``, chosen now if it is a fresh folder: its name and a few random digits.

    It is kept in the folder, so every stage, restart and machine that works there says the same, and a folder that was
    emptied begins another run, which shares neither logs nor submissions with the one before.
    """
    found = find_run(out)
    if found is not None:
        return found
    name = re.sub(r"[^a-z0-9]+", "-", out.rstrip("/").rpartition("/")[2].lower()).strip("-")[:_NAME_LENGTH]
    chosen = f"{name or 'run'}-{secrets.token_hex(3)}"
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    try:
        storage.put_json_new(storage.join(out, _FILE), {"run": chosen, "begun": now})
    except FileExistsError:  # another process was first
        return find_run(out) or chosen
    return chosen
