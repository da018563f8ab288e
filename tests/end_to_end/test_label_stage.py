"""The pipeline's labelling stage: between train and generate if asked for, and told of early if it cannot work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dakter import storage
from dakter.config import read_yaml
from dakter.corpus.reader import CorpusReader
from dakter.errors import ConfigError, DataError, Stopped
from jobs import _cli, distill, generate, pipeline
from jobs._cli import Stop
from jobs._standing import lines
from jobs.pipeline import PipelineSettings, stage_settings, stages_of

WITH = ["prepare", "train", "label", "generate", "distill", "evaluate", "promote"]
QUICK = {"train.steps": 4, "train.warmup_steps": 1, "corpus.num_samples": 16, "sampler.steps": 2, "data.num_train": 12}


def settings(out: Path, **changes: Any) -> PipelineSettings:
    over = {"out": str(out), **{key.replace("__", "."): value for key, value in changes.items()}}
    return _cli.resolve(PipelineSettings, preset="tiny", overrides={**QUICK, **over})


class AfterGeneration(Stop):
    """Asks to stop once generation has left its record."""

    def __call__(self) -> bool:
        return self.requested

    def check(self, kept: str) -> None:
        self.requested = self.requested or "before distill" in kept
        super().check(kept)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_it_runs_before_generate_and_both_that_and_distill_get_its_corpus(tmp_path: Path) -> None:
    ours = settings(tmp_path, label=True, render__others=0.5, render__maps="labelled")
    with pytest.raises(Stopped, match="stages before distill are done"):
        pipeline.run(ours, AfterGeneration())
    reader = CorpusReader(str(tmp_path / "labelled"))
    assert reader.num_samples == 16
    drawn = CorpusReader(str(tmp_path / "corpus")).identity["sampler"]["render"]
    assert (drawn["labelled_digest"], drawn["others"]) == (reader.digest, 0.5)
    found = pipeline.status(ours, Stop())
    assert [row["stage"] for row in found["stages"]] == WITH
    assert [row["state"] for row in found["stages"]] == ["done"] * 4 + ["not done"] * 3
    assert (found["next"], found["labelled"]["num_samples"], found["corpus"]["num_samples"]) == ("distill", 16, 16)
    assert any(line.startswith("labelled  16 of 16 samples") for line in lines(found))
    own = stage_settings(distill.JOB, ours)
    assert own.students.share(with_labelled=own.paths.labelled == reader.url) == 0.5
    record = storage.read_json(str(tmp_path / "stages/label.json"))
    assert record["figures"]["corpus_digest"] == reader.digest


def test_without_being_asked_there_is_no_such_stage(tmp_path: Path) -> None:
    ours = settings(tmp_path)
    assert [job.name for job in stages_of(ours)] == [name for name in WITH if name != "label"]
    assert stage_settings(distill.JOB, ours).paths.labelled is None
    found = pipeline.status(ours, Stop())
    assert "label" not in [row["stage"] for row in found["stages"]]
    assert "labelled" not in found


@pytest.fixture
def submitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stages as they are submitted to a cluster that does each at once, promotion without a record; with their GPUs."""
    names: list[str] = []

    class Cluster:
        @classmethod
        def connect(cls, *_: Any) -> Cluster:
            return cls()

        def run_stage(self, stage: str, where: str, *, gpus: float, **_: Any) -> None:
            names.append(f"{stage} on {gpus:g} GPU" if gpus else stage)
            own = read_yaml(storage.read_bytes(where).decode(), where=where)
            if stage != "promote":
                record = {"seconds": 1.0, "figures": {}, "settings": own}
                storage.put_json(str(tmp_path / f"stages/{stage}.json"), record)

    monkeypatch.setattr(pipeline, "Cluster", Cluster)
    monkeypatch.setattr(pipeline, "on_cluster", lambda: True)
    return names


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"promotion__candidate": "joint-model", "evaluate__joint_model": False}, "promotion.candidate is joint-model"),
        ({"promotion__candidate": "best", "diffusion__mode": "joint"}, "no joint model to stand"),
        ({"train__keep": "best", "diffusion__mode": "joint"}, "expected mode independent"),
        ({"render__others": 0.5, "diffusion__mode": "joint"}, "can draw images for label maps"),
        ({"render__others": 0.5, "render__maps": "both"}, "render.maps is both without labelled tiles"),
        ({"label": True, "students__unlabelled_share": 0.01}, "rounds to all or none of them"),
        ({"label": True, "students__unlabelled_share": 1.0, "paths__accept": "a.json"}, "leave one of them out"),
    ],
)
def test_settings_that_do_not_go_together_are_told_at_the_start(
    submitted: list[str], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        pipeline.run(settings(tmp_path, **changes), Stop())
    assert submitted == []


def test_on_a_cluster_it_is_a_job_of_its_own(
    submitted: list[str], mixed_sources: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = {f"paths__{name}": mixed_sources[name] for name in ("tiles", "labelled")}
    ours = settings(tmp_path, label=True, submission__evaluate_gpus=1.0, **places)
    with pytest.raises(FileNotFoundError, match="promote"):
        pipeline.run(ours, Stop())
    assert submitted == [f"{name} on 1 GPU" if name == "evaluate" else name for name in WITH]
    monkeypatch.undo()
    found = pipeline.status(ours, Stop())
    assert [row["stage"] for row in found["stages"]] == WITH
    assert [row["different"] for row in found["stages"]] == [[]] * 7
    assert (found["next"], found["labelled"]["num_samples"]) == ("promote", 6)
    assert any(line.startswith("labelled  6 of 6 samples") for line in lines(found))


def test_distill_gets_the_corpus_that_the_stage_makes(tmp_path: Path) -> None:
    ours = settings(tmp_path, label=True)
    own = {job.name: stage_settings(job, ours) for job in stages_of(ours)}
    assert own["label"].url == own["distill"].paths.labelled == str(tmp_path / "labelled")
    assert own["evaluate"].paths.labelled is None, "a record of an earlier run stays that of the same artefact"


def test_the_dry_run_shows_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _cli.main(pipeline.JOB, ["--preset", "tiny", "--out", str(tmp_path), "--label", "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "label: p(label given image) of every unlabelled tile, 2 evaluations of the read-out each" in text
    assert f"label: corpus {tmp_path}/labelled" in text
    assert f"distill: 0.5 of the rows that are no real labelled pairs from {tmp_path}/labelled" in text


def test_what_cannot_work_is_told_before_hours_are_spent(
    submitted: list[str], sources: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"diffusion\.mode joint; expected independent"):
        pipeline.run(settings(tmp_path, label=True, diffusion__mode="joint"), Stop())
    with pytest.raises(ConfigError, match=r"unlabelled_share is 0\.3 without a corpus"):
        pipeline.run(settings(tmp_path, students__unlabelled_share=0.3), Stop())
    assert submitted == []
    with pytest.raises(DataError, match="holds no unlabelled tile"):
        pipeline.run(settings(tmp_path, label=True, paths__tiles=sources["tiles"]), Stop())
    for quotas, what in (
        ({"slick": 0.1}, r"render\.quotas names slick"),
        ({"oil spill": 0.1}, "asks for oil spill, and none of .* has 4096 pixels"),
    ):
        steered = {"render__quotas": quotas, "render__contains_px": 4096, "paths__tiles": sources["tiles"]}
        with pytest.raises(ConfigError, match=what):
            pipeline.run(settings(tmp_path, **steered), Stop())
    assert submitted == ["prepare"] * 3, "and nothing was trained"


def test_a_record_from_before_a_section_came_differs_in_nothing(tmp_path: Path) -> None:
    ours = settings(tmp_path)
    record = {"seconds": 1.0, "figures": {}, "settings": stage_settings(generate.JOB, ours).dump()}
    del record["settings"]["render"]
    storage.put_json(str(tmp_path / "stages/generate.json"), record)

    def told(settings: PipelineSettings) -> list[str]:
        return [text for row in pipeline.status(settings, Stop())["stages"] for text in row["different"]]

    assert told(ours) == []
    assert told(settings(tmp_path, render__others=0.5)) == ["render.others: 0.0 there, 0.5 asked for"]
