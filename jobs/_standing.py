"""Where a run of the pipeline stands: by the records that its stages left, and by what its cluster is doing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dakter import config, storage
from dakter.config import Config
from dakter.corpus import status as corpus_status
from dakter.corpus.layout import Layout
from dakter.progress import duration
from jobs._submission import Submission

# Stage -> what the table calls the corpus that it makes.
_NAMES = {"generate": "corpus", "label": "labelled"}


def standing(
    out: str,
    run: str | None,
    wanted: Mapping[str, Config],
    *,
    corpora: Mapping[str, str],
    report: str,
    submissions: Sequence[Submission],
) -> dict[str, Any]:
    """A table of the run's stages.

    Args:
        run: its id, None if it was never begun.
        wanted: stage -> settings that would be used now; a record made with others is told so.
        corpora: stage that makes one -> URL of it. report: URL.
        submissions: those of this run on the cluster, oldest attempt first.
    """
    latest = {one.stage: one for one in submissions}
    stages = [_stage(out, name, settings, latest.get(name)) for name, settings in wanted.items()]
    return {
        "run": run,
        "out": out,
        "stages": stages,
        "next": next((row["stage"] for row in stages if row["state"] not in ("done", "refused")), None),
        **{_NAMES[stage]: _corpus(url) for stage, url in corpora.items()},
        "report": report if storage.exists(report) else None,
    }


def _stage(out: str, name: str, settings: Config, submission: Submission | None) -> dict[str, Any]:
    try:
        record = storage.read_json(storage.join(out, "stages", f"{name}.json"))
    except FileNotFoundError:
        record = None
    state = "not done"
    if record is not None:
        state = "refused" if record["figures"].get("promoted") is False else "done"
    if submission is not None and not submission.ended:
        state = submission.state.lower()
    elif record is None and submission is not None:
        state = {"FAILED": "failed", "STOPPED": "stopped"}.get(submission.state, state)
    return {
        "stage": name,
        "state": state,
        "seconds": record and record["seconds"],
        "figures": record and record["figures"],
        "different": _different(settings, record["settings"]) if record else [],
        "submission": submission
        and {"id": submission.id, "state": submission.state, "exit_status": submission.exit_status},
    }


def _different(settings: Config, recorded: Mapping[str, Any]) -> list[str]:
    """In what a stage's settings differ from those of its record; a section that came later counts as its default."""
    now, then, plain = settings.dump(), dict(recorded), type(settings)().dump()
    for section in set(now) - set(then):
        then[section] = plain[section]
    return config.differences(_decisive(now), _decisive(then))


def _decisive(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Without what changes how a stage runs and not what it makes."""
    return {key: value for key, value in settings.items() if key not in ("log_level", "log_format", "ray")}


def _corpus(url: str) -> dict[str, Any] | None:
    if not storage.exists(storage.join(url, "identity.json")):
        return None
    found = corpus_status.status(Layout.open(url))
    keys = ("num_samples", "num_samples_planned", "samples_per_second", "seconds_left")
    return {**{key: found[key] for key in keys}, "num_failed": len(found["failed"])}


def lines(found: Mapping[str, Any]) -> list[str]:
    """For people."""
    told = [f"run {found['run'] or 'not begun'} in {found['out']}"]
    for row in found["stages"]:
        took = f" in {duration(row['seconds'])}" if row["seconds"] is not None else ""
        by = f", {row['submission']['id']}: {row['submission']['state']}" if row["submission"] else ""
        told.append(f"{row['stage']:<9} {row['state']}{took}{by}")
        told += [f"{'':<9} made with other settings: {text}" for text in row["different"]]
    for name in _NAMES.values():
        if corpus := found.get(name):
            left = f", {duration(corpus['seconds_left'])} left" if corpus["seconds_left"] else ""
            told.append(
                f"{name:<9} {corpus['num_samples']} of {corpus['num_samples_planned']} samples, {corpus['num_failed']} "
                f"shards set aside{left}"
            )
    told.append(f"report    {found['report'] or 'not written'}")
    return told
