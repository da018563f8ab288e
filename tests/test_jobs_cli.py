"""What every job shares: flags, presets, dry run, exit status, the stage record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dakter.config import Config, setting
from dakter.errors import DataError, GateError, Stopped
from jobs import _cli
from jobs._cli import Job, JobSettings, Plan, Stop, Verb


class TrainSection(Config):
    steps: int = setting(5, "optimiser steps", unit="steps", ge=1)
    learning_rate: float = setting(1e-3, "step size", gt=0)


class ToySettings(JobSettings):
    train: TrainSection = TrainSection()


def toy(run: Any) -> Job[ToySettings]:
    def plan(settings: ToySettings) -> Plan:
        return Plan(["tiles"], [f"{settings.train.steps} steps"], [settings.place("model")])

    return Job(
        "toy", "A toy.", ToySettings, run, plan, {"status": Verb("say where it stands", lambda s, _: {"ok": s.out})}
    )


def test_flags_file_and_preset_lie_over_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cli, "load_preset", lambda name: {"train": {"steps": 7, "learning_rate": 0.5}, "corpus": {}})
    file = tmp_path / "own.yaml"
    file.write_text("train: {steps: 8}\n")
    got = _cli.resolve(ToySettings, preset="x", file=str(file), overrides={"train.steps": 9})
    assert (got.train.steps, got.train.learning_rate, got.out) == (9, 0.5, "runs/x")
    assert _cli.resolve(ToySettings, preset="x", file=str(file)).train.steps == 8


def test_done_writes_the_stage_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = toy(lambda settings, stop: {"num_steps": settings.train.steps})
    assert _cli.main(job, ["--out", str(tmp_path), "--train.steps", "3", "--json"]) == 0
    record = json.loads((tmp_path / "stages/toy.json").read_text())
    assert record["figures"] == {"num_steps": 3}
    assert record["settings"]["train"]["steps"] == 3
    assert json.loads(capsys.readouterr().out) == record


def test_already_done_keeps_the_first_record(tmp_path: Path) -> None:
    _cli.main(toy(lambda settings, stop: {"seconds_spent": 100}), ["--out", str(tmp_path)])
    before = (tmp_path / "stages/toy.json").read_bytes()
    assert _cli.main(toy(lambda settings, stop: {"already_done": True}), ["--out", str(tmp_path)]) == 0
    assert (tmp_path / "stages/toy.json").read_bytes() == before


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (DataError("bad"), 1),
        (RuntimeError("bug"), 1),
        (GateError("no"), 3),
        (Stopped("kept"), 4),
        (KeyboardInterrupt(), 4),
    ],
)
def test_exit_status(error: BaseException, status: int, tmp_path: Path) -> None:
    def run(settings: ToySettings, stop: Stop) -> dict[str, Any]:
        raise error

    assert _cli.main(toy(run), ["--out", str(tmp_path)]) == status
    told = [path.name for path in tmp_path.glob("stages/*.json")]
    assert told == (["toy.json"] if status == 3 else []), "only the gate's no is an outcome to record"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--train.stepz", "3"],
        ["--train.steps", "0"],
        ["--train.steps", "many"],
        ["--preset", "nope"],
        ["--config", "no.yaml"],
        ["frobnicate"],
    ],
)
def test_wrong_use_is_2(arguments: list[str]) -> None:
    assert _cli.main(toy(lambda settings, stop: {}), arguments) == 2


def test_an_unknown_table_in_a_file_is_wrong_use(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("trian: {steps: 8}\n")
    assert _cli.main(toy(lambda settings, stop: {}), ["--config", str(file)]) == 2


def test_help_shows_every_setting_with_unit_and_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert _cli.main(toy(lambda settings, stop: {}), ["--help"]) == 0
    text = capsys.readouterr().out
    for part in ("--train.steps", "optimiser steps [steps] (default: 5)", "--paths.corpus", "--dry-run", "status"):
        assert part in text.replace("\n", " ").replace("  ", " ") or part in text


def test_dry_run_prints_and_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(settings: ToySettings, stop: Stop) -> dict[str, Any]:
        raise AssertionError("a dry run must not run")

    assert _cli.main(toy(run), ["--out", str(tmp_path / "o"), "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "steps: 5" in text
    assert "would write" in text
    assert not (tmp_path / "o").exists()


def test_a_verb_runs_instead_of_the_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _cli.main(toy(lambda settings, stop: {}), ["status", "--out", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"ok": str(tmp_path)}
    assert not (tmp_path / "stages").exists()


def test_local_places_become_absolute_and_urls_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    seen: list[ToySettings] = []

    def run(settings: ToySettings, stop: Stop) -> dict[str, Any]:
        seen.append(settings)
        return {}

    assert _cli.main(toy(run), ["--out", "runs/a #1", "--paths.model", "s3://bucket/model"]) == 0
    assert seen[0].out == str(tmp_path / "runs/a #1"), "workers stand in other folders; text is taken as it is"
    assert seen[0].place("model") == "s3://bucket/model"
    assert seen[0].place("corpus") == str(tmp_path / "runs/a #1/corpus")


def test_a_record_of_another_artefact_is_replaced(tmp_path: Path) -> None:
    arguments = ["--out", str(tmp_path), "--paths.model"]
    _cli.main(toy(lambda settings, stop: {"steps": 1}), [*arguments, "a"])
    _cli.main(toy(lambda settings, stop: {"steps": 2, "already_done": True}), [*arguments, "b"])
    assert json.loads((tmp_path / "stages/toy.json").read_text())["figures"]["steps"] == 2


def test_a_dry_run_of_a_verb_is_wrong_use(tmp_path: Path) -> None:
    assert _cli.main(toy(lambda settings, stop: {}), ["status", "--out", str(tmp_path), "--dry-run"]) == 2
