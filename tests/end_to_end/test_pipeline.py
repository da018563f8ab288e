"""The whole job on the preset ``tiny``: stage by stage without test data in reach, then in one command."""

from __future__ import annotations

import hashlib
import json
import re
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from repeatedly import repeatedly

from jobs import _cli, _metrics, distill, evaluate, generate, pipeline, prepare, promote, train
from jobs._ray import RayConfig, session


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A finished pipeline; yields its folder and the exit statuses seen on the way."""
    out = tmp_path_factory.mktemp("run")
    arguments, statuses = ["--preset", "tiny", "--out", str(out)], {}
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("RAY_metrics_report_interval_ms", "200")  # tiny stages end within Ray's own ten seconds
    hidden, tiles = out / "hidden.zarr", out / "tiles/test.zarr"
    with session(RayConfig(num_cpus=4)) as ray, scraping(ray.nodes()[0]["MetricsExportPort"]) as scraped:
        statuses["prepare"] = _cli.main(prepare.JOB, arguments)
        tiles.rename(hidden)
        for job in (train.JOB, generate.JOB, distill.JOB, evaluate.JOB):
            statuses[f"{job.name} without test"] = _cli.main(job, arguments)
        hidden.rename(tiles)
        statuses["pipeline"] = _cli.main(pipeline.JOB, arguments)
        before = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files(out)}
        statuses["pipeline again"] = _cli.main(pipeline.JOB, arguments)
        statuses["promote again"] = _cli.main(promote.JOB, arguments)
        after = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files(out)}
    monkeypatch.undo()
    (out / "metrics.txt").write_text("".join(sorted(scraped)))
    return out, statuses, before, after


@contextmanager
def scraping(port: int) -> Iterator[set[str]]:
    """Every line of ours that a node's metrics endpoint shows while this is open, as Prometheus would ask for it."""
    seen: set[str] = set()

    def scrape() -> None:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
            seen.update(line for line in answer.read().decode().splitlines(True) if line.startswith("ray_dakter_"))

    with repeatedly(scrape, 0.5):
        yield seen


def files(out: Path) -> list[Path]:
    """What a finished run must keep as it is: all but MLflow's own database and the pipeline's record of itself."""
    kept = ("tiles", "model", "corpus", "evaluation", "promotion", "report", "sweep/students")
    return [path for name in kept for path in sorted((out / name).rglob("*")) if path.is_file()]


@pytest.mark.timeout(900)
def test_nothing_but_evaluation_reads_test(run: Any) -> None:
    _, statuses, *_ = run
    assert [statuses[f"{name} without test"] for name in ("train", "generate", "distill")] == [0, 0, 0]
    assert statuses["evaluate without test"] == 1, "evaluation does read it, and says so when it is gone"


def test_exit_statuses(run: Any) -> None:
    out, statuses, *_ = run
    decision = json.loads((out / "promotion/decision.json").read_text())
    assert statuses["pipeline"] == 0, "a challenger that lost is an outcome of the pipeline, not a failure"
    assert statuses["pipeline again"] == 0
    assert statuses["promote again"] == (0 if decision["promoted"] else 3)


@pytest.mark.slow
def test_the_same_command_again_changes_nothing(run: Any) -> None:
    *_, before, after = run
    assert before == after


def test_report_json_holds_the_evidence(run: Any) -> None:
    out, *_ = run
    report = json.loads((out / "report/report.json").read_text())
    for arm in ("real", "distilled"):
        assert [row["class"] for row in report["arms"][arm]["iou"]] == [
            "sea surface", "oil spill", "look-alike", "ship", "land",
        ]  # fmt: skip
        assert {"mean", "low", "high"} <= set(report["arms"][arm]["iou"][0])
    assert set(report["arms"]) == {"real", "distilled", "joint-model"}
    assert set(report["latency"]["models"]) == {row["id"] for arm in report["arms"].values() for row in arm["students"]}
    text = json.dumps(report)
    assert '"promoted": ' in text
    model = json.loads((out / "stages/train.json").read_text())["figures"]
    assert json.dumps(model["b"]) in text
    assert model["num_steps"] == 40


def test_the_page_needs_no_network_and_shows_the_galleries(run: Any) -> None:
    page = (run[0] / "report/report.html").read_text()
    for loading in ("<script", '<link rel="stylesheet', 'src="http', "@import", "url(http"):
        assert loading not in page
    assert page.count("data:image/png;base64,") > 20


def test_ray_exports_every_figure_of_the_jobs(run: Any) -> None:
    text = (run[0] / "metrics.txt").read_text()
    assert set(re.findall(r"^(\w+)", text, re.M)) == {_metrics.exported(name) for name in _metrics.FIGURES}
    id = json.loads((run[0] / "run.json").read_text())["run"]
    labels = [dict(re.findall(r'(\w+)="([^"]*)"', line)) for line in text.splitlines()]
    assert {row["run"] for row in labels} == {id}
    assert {(row["stage"], row.get("unit")) for row in labels} >= {
        ("train", "steps"), ("generate", "samples"), ("distill", "trials"), ("distill", "students"),
    }  # fmt: skip
    written = [float(line.split()[-1]) for line in text.splitlines() if 'outcome="written"' in line]
    assert max(written) == 2, "two shards of 16 samples"


def test_every_stage_left_its_record(run: Any) -> None:
    for name in ("prepare", "train", "generate", "distill", "evaluate"):
        record = json.loads((run[0] / f"stages/{name}.json").read_text())
        assert record["seconds"] > 0
        assert record["settings"]["out"] == str(run[0])
        assert "torch" in record["versions"]
