"""Flags of a job, made from its settings and verbs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from dakter import config
from dakter.config import Config
from dakter.errors import ConfigError

if TYPE_CHECKING:
    from jobs._cli import Job


def parser(job: Job[Any], presets: Sequence[str]) -> argparse.ArgumentParser:
    """Of a job: its verbs, its own options, and a flag for every setting. Parsed, it holds those that were given."""
    verbs = "".join(f"\n  {name:<12}{verb.summary}" for name, verb in job.verbs.items())
    made = argparse.ArgumentParser(
        prog=f"python jobs/{job.name}.py",
        usage=f"python jobs/{job.name}.py {'[VERB] ' if job.verbs else ''}[--preset NAME] [--config FILE] [--dry-run] "
        "[--json] [--TABLE.SETTING VALUE ...]",
        description=job.summary,
        formatter_class=partial(argparse.RawDescriptionHelpFormatter, max_help_position=34, width=110),
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        epilog="The same command again resumes, or says that it is done.\n"
        "Exit status: 0 done, 1 failed, 2 wrong use, 3 the gate said no (promote), 4 stopped with work kept."
        + (f"\n\nVerbs (first word; none does the job itself):{verbs}" if verbs else ""),
    )
    if job.verbs:
        made.add_argument(
            "verb",
            nargs="?",
            choices=list(job.verbs),
            default=None,
            metavar="VERB",
            help=f"one of {', '.join(job.verbs)} (see below); leave it out to run the job",
        )
    made.add_argument("--preset", default=None, metavar="NAME", help=f"one of: {', '.join(presets)}")
    made.add_argument(
        "--config", default=None, metavar="FILE", help="YAML file with the same tables, laid over the preset"
    )
    made.add_argument(
        "--dry-run",
        action="store_true",
        default=False,
        help="print the resolved settings and what would be read, computed and written; change nothing",
    )
    made.add_argument("--json", action="store_true", default=False, help="print the outcome as JSON on standard output")
    if "status" in job.verbs:
        made.add_argument("--status", action="store_true", default=False, help="the same as the verb status")
    for name, verb in job.verbs.items():
        if verb.options is None:
            continue
        group = made.add_argument_group(f"{name} (this verb alone)")
        for flag in config.flags(verb.options):
            _add(group, flag)
    groups: dict[str, Any] = {}
    for flag in config.flags(job.settings):
        section = flag.key.rpartition(".")[0] or "general"
        if section not in groups:
            groups[section] = made.add_argument_group(section)
        _add(groups[section], flag)
    return made


def _add(group: Any, flag: config.Flag) -> None:
    if flag.type_name == "bool":  # ``--deep`` alone means yes
        group.add_argument(f"--{flag.key}", nargs="?", const="true", metavar="true|false", help=_text(flag))
    else:
        group.add_argument(f"--{flag.key}", metavar=flag.key.rpartition(".")[2].upper(), help=_text(flag))


def _text(flag: config.Flag) -> str:
    unit = f" [{flag.unit}]" if flag.unit else ""
    return f"{flag.description}{unit} (default: {_show(flag.default)})".replace("%", "%%")


def _show(value: Any) -> str:
    return "null" if value is None else str(list(value)) if isinstance(value, tuple) else str(value)


def verb_options(job: Job[Any], verb: str | None, given: dict[str, Any]) -> Config | None:
    """Take the flags of verbs out of ``given``; returns those of ``verb``, if it has any.

    Raises:
        ConfigError: a flag of another verb, or a value that does not fit.
    """
    wanted: Config | None = None
    for name, entry in job.verbs.items():
        if entry.options is None:
            continue
        kinds = {flag.key: flag.type_name for flag in config.flags(entry.options)}
        taken = {key: given.pop(key) for key in list(given) if key in kinds}
        if name != verb and taken:
            raise ConfigError(f"--{next(iter(taken))} belongs to {name}; say jobs/{job.name}.py {name} ...")
        if name == verb:
            values = {key: config.parse_value(key, value, kinds[key]) for key, value in taken.items()}
            wanted = config.load(entry.options, values)
    return wanted
