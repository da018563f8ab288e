"""The dashboard: a well-formed one, and every metric that it asks for is one that the jobs export, and the reverse."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from jobs import _metrics

DASHBOARD = Path(__file__).parents[2] / "infra/grafana/dakter.json"
KINDS = {"timeseries", "stat", "bargauge"}


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    return dict(json.loads(DASHBOARD.read_text()))


def queries(dashboard: dict[str, Any]) -> list[str]:
    panels = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    return panels + [entry["definition"] for entry in dashboard["templating"]["list"] if entry["type"] == "query"]


def test_it_asks_for_what_the_jobs_export(dashboard: dict[str, Any]) -> None:
    asked = {name for text in queries(dashboard) for name in re.findall(r"\bray_\w+", text)}
    assert asked == {_metrics.exported(name) for name in _metrics.FIGURES}


def test_labels_are_those_of_the_metrics(dashboard: dict[str, Any]) -> None:
    known = {"run", "stage"} | {label for figure in _metrics.FIGURES.values() for label in figure.labels}
    for text in queries(dashboard):
        matched = re.findall(r"(\w+)(?:=~?)\"", text)
        grouped = [label.strip() for group in re.findall(r"by \(([^)]*)\)", text) for label in group.split(",")]
        assert {*matched, *grouped} <= known, text
        assert text.count("(") == text.count(")"), text
    legends = [target["legendFormat"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert {name for text in legends for name in re.findall(r"{{(\w+)}}", text)} <= known


def test_its_form_is_that_of_grafana(dashboard: dict[str, Any]) -> None:
    assert {"uid", "title", "schemaVersion", "panels", "templating", "time", "annotations"} <= set(dashboard)
    assert dashboard["schemaVersion"] >= 36, "the first with data sources as objects"
    variables = {entry["name"] for entry in dashboard["templating"]["list"]}
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        assert panel["type"] in KINDS
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, "the grid has 24 columns"
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, f"{panel['title']} lies over another panel"
        taken |= cells
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references)
        assert set(re.findall(r"\$\{?(\w+)\}?", json.dumps(panel))) <= variables
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
