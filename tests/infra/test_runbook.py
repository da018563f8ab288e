"""The runbook tells of every error and variable there is, and of no command, verb or setting that there is not."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest

from dakter import config, errors
from jobs import _cli, _environment, _flags

TEXT = (Path(__file__).parents[2] / "infra/RUNBOOK.md").read_text()
COMMANDS = [line.split("#")[0].strip() for line in TEXT.splitlines() if line.startswith("python jobs/")]


def test_every_error_has_its_row_with_its_status() -> None:
    rows = {name: int(status) for status, name in re.findall(r"^\| (\d) \| `(\w+)` \|", TEXT, re.M)}
    assert rows == {one.__name__: one.exit_status for one in classes()}


def classes() -> list[type[errors.DakterError]]:
    return [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, errors.DakterError)]


def test_every_variable_that_travels_is_named() -> None:
    part = TEXT.split("Variables that go with a stage")[1].split("They are in no log")[0]
    assert set(re.findall(r"`([A-Z0-9_]+)`", part)) == set(_environment.FORWARDED)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_real(command: str) -> None:
    words = shlex.split(command)
    job = importlib.import_module(words[1].removesuffix(".py").replace("/", ".")).JOB
    rest = [word.replace("$PRESET", "tiny").replace("$OUT", "s3://b/runs/x") for word in words[2:]]
    options = vars(_flags.parser(job, _cli.presets()).parse_args(rest))
    assert set(options) - {"verb", "preset", "config", "dry_run", "json", "status"} <= {
        flag.key for flag in config.flags(job.settings)
    }


def test_there_are_commands() -> None:
    assert len(COMMANDS) >= 6


def test_settings_that_are_named_exist() -> None:
    from jobs import pipeline

    known = {flag.key for flag in config.flags(pipeline.PipelineSettings)}
    named = set(re.findall(r"--((?:submission|tracking|budget)\.\w+|log_format)", TEXT))
    assert named
    assert named <= known
