"""What log lines say, and what else hears of progress."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dakter import progress
from dakter.progress import Progress
from jobs import _cli, _context, _logs
from jobs._cli import Job, JobSettings, Plan, Stop

log = logging.getLogger("dakter.jobs.toy")


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = _context.current()
    yield
    _context.enter(before)


def job(what: Any = None) -> Job[JobSettings]:
    def run(settings: JobSettings, stop: Stop) -> dict[str, Any]:
        if what is not None:
            raise what
        work = Progress(log, "toys", 4, "toys", every_s=0.0)
        work.advance(1, "loss 0.5")
        work.advance(3)
        return {}

    return Job("toy", "A toy.", JobSettings, run, lambda settings: Plan([], [], []))


def test_readable_lines_hold_run_and_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _cli.main(job(), ["--out", str(tmp_path / "A run!")]) == 0
    run = json.loads((tmp_path / "A run!/run.json").read_text())["run"]
    assert run.startswith("a-run-")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert all(f" INFO [{run} toy] " in line for line in lines)
    assert "toys 1/4 (25 %)" in lines[0]


def test_json_lines_are_objects_with_the_fields_of_progress(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _cli.main(job(), ["--out", str(tmp_path), "--log_format", "json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    run = json.loads((tmp_path / "run.json").read_text())["run"]
    assert {(row["run"], row["stage"], row["level"]) for row in rows} == {(run, "toy", "INFO")}
    assert [(row["done"], row["total"], row["unit"]) for row in rows[:2]] == [(1, 4, "toys"), (4, 4, "toys")]
    assert rows[0]["rate_per_s"] > 0
    assert rows[0]["left_s"] is not None
    assert rows[1]["left_s"] == 0
    assert rows[0]["message"].endswith("loss 0.5")
    assert rows[0]["time"].endswith("+00:00")


def test_an_error_is_one_object_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _cli.main(job(RuntimeError("bug")), ["--out", str(tmp_path), "--log_format", "json"]) == 1
    (row,) = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert "Traceback" in row["message"]
    assert row["run"] == _context.find_run(str(tmp_path))


def test_the_run_keeps_its_id_until_its_folder_is_emptied(tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    assert _context.find_run(out) is None
    first = _context.begin_run(out)
    assert _context.begin_run(out) == _context.find_run(out) == first
    (tmp_path / "run/run.json").unlink()
    assert _context.begin_run(out) != first


def test_workers_lines_arrive_as_objects(capsys: pytest.CaptureFixture[str]) -> None:
    _context.enter(_context.RunContext("r", "generate", "INFO", "json"))
    own = '{"time": "2026-01-01T00:00:00.000+00:00", "message": "mine"}'
    _logs._relay({"pid": 7, "ip": "10.0.0.2", "actor_name": "ShardActor", "lines": [own, "a library's print", " "]})
    _logs._relay({"pid": "autoscaler", "lines": ["Demands: none"]})
    rows = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert rows[0]["message"] == "mine"
    assert (rows[1]["message"], rows[1]["pid"], rows[1]["actor_name"]) == ("a library's print", "7", "ShardActor")
    assert len(rows) == 2


def test_handlers_of_ray_that_repeat_lines_are_removed() -> None:
    class Console(logging.StreamHandler):
        pass

    Console.__module__ = "ray.train"
    other = Console()
    logging.getLogger().addHandler(other)
    _context.enter(_context.RunContext())
    assert other not in logging.getLogger().handlers


def test_observers_hear_the_first_and_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[int] = []

    def observer(seen: Progress) -> None:
        heard.append(seen.done)

    monkeypatch.setattr(progress, "_observers", [])
    progress.observe(observer)
    progress.observe(observer)
    work = Progress(log, "toys", 5000, "toys")
    for _ in range(5000):
        work.advance()
    assert (heard[0], heard[-1]) == (1, 5000)
    assert len(set(heard)) == len(heard) < 100, "not at every item, and once each"
