"""The record of a run keeps the figures and none of the places."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from report_fixture import full_inputs, with_joint_model

from dakter.report import record
from dakter.report.build import build


def test_the_joint_model_is_a_row_of_its_own() -> None:
    kept = record.record_of(build(with_joint_model(full_inputs()))[1], hardware="2 cores", commit="abc")
    rows = record.rows_of(kept)
    named = ["real", "distilled", "joint-model", "difference", "joint-model, difference"]
    assert [row.split(" | ")[1] for row in rows] == named
    assert rows[-1] == "| demo | joint-model, difference | +6.1 (-0.4 to +10.0) |  |  |  |"
    assert kept["candidate"] == {"arm": "joint-model", "id": "joint-model", "why": "promotion.candidate"}


def test_record_and_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = build(full_inputs())[1]
    (tmp_path / "report.json").write_text(json.dumps(report))
    places = [str(tmp_path / "report.json"), str(tmp_path / "record.json")]
    assert record.main([*places, "--hardware", "2 cores", "--commit", "abc"]) == 0
    kept = json.loads((tmp_path / "record.json").read_text())
    assert kept["arms"]["distilled"]["iou"] == report["arms"]["distilled"]["iou"]
    assert kept["b"] == report["b"]
    assert (kept["hardware"], kept["commit"]) == ("2 cores", "abc")
    assert "settings" not in json.dumps(kept)
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 3
    assert rows[2].startswith("| demo | difference | +3.3 (+1.2 to +5.5)")
