"""The distill job on small real parts: a tile corpus, a synthetic corpus, Ray on loopback, SQLite tracking."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aws_stacks import Roles, beyond_jobs
from copied_pairs import sweep_settings
from s3_recorder import Asked, artefacts

from dakter import storage
from dakter.corpus.reader import CorpusReader
from dakter.data.tiles import TileCorpus
from dakter.errors import ConfigError, ConflictError, DataError, Stopped, StorageError
from dakter.students.store import load_student
from dakter.students.train import LabelledArrays, StudentsConfig
from jobs._cli import Stop, execute
from jobs._ray import beside_driver, session
from jobs._redone import Tally
from jobs._sources import Source, in_memory, shard_stream
from jobs.distill import JOB, DistillSettings

pytestmark = pytest.mark.timeout(600)


def _runs(out: Path) -> list[Any]:
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{out}/mlflow.db")
    experiment = client.get_experiment_by_name("dakter")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id]))


def test_the_whole_job_is_stopped_resumed_and_then_done_on_s3(
    roles: Roles,
    mixed_sources: Mapping[str, str],
    s3_bucket: str,
    s3_requests: Asked,
    tmp_path: Path,
) -> None:
    sources, labelled = mixed_sources, {"paths.labelled": mixed_sources["labelled"]}
    out = {"out": f"{s3_bucket}/runs/a", **labelled, "sweep.synthetic_share": [0.5, 0.8]}
    settings = sweep_settings(sources, tmp_path, **out)
    sweep = settings.place("sweep")

    class StopInSearch(Stop):
        """Asks to stop once the first trial is over."""

        def __call__(self) -> bool:
            self.requested = self.requested or bool(storage.sizes(f"{sweep}/previews"))
            return self.requested

    with pytest.raises(Stopped, match="resumes"):
        JOB.run(settings, StopInSearch())
    before = {run.info.run_id for run in _runs(tmp_path)}
    assert not storage.exists(f"{sweep}/sweep.json")

    record = execute(JOB, settings, Stop())
    figures = record["figures"]
    found = storage.read_json(f"{sweep}/sweep.json")
    assert set(found["arms"]) == {"real", "distilled"}
    assert found["model_digest"] == "copies"
    assert found["labelled_digest"] == CorpusReader(sources["labelled"]).digest
    assert (figures["num_labelled_real"], figures["unlabelled_share"]) == (6, 0.5)
    for arm, table in found["arms"].items():
        trials = table["search"]["trials"]
        assert len(trials) == table["search"]["num_trials"] == 4  # the same budget for both arms
        assert {trial["config"]["architecture"] for trial in trials} == {"PSPNet", "FPN"}
        stopped = [trial for trial in trials if trial["stopped_early"]]
        assert table["search"]["num_stopped_early"] == len(stopped) >= 1
        assert all(trial["steps"] in (2, 4) for trial in stopped)
        assert any(trial["steps"] == 6 for trial in trials)
        assert table["best"] == max(trials, key=lambda trial: trial["val_miou"])["config"]
        assert (table["best"]["synthetic_share"] > 0) == (arm == "distilled")
        (row,) = table["students"]
        student = load_student(f"{sweep}/{row['path']}")
        assert student.digest == row["digest"]
        assert student.config.dump() == table["best"]
        assert student.record["tiles_digest"] == found["tiles_digest"]
        assert [entry["step"] for entry in row["history"]] == [2, 4, 6]
        assert row["val_miou"] == max(entry["val_miou"] for entry in row["history"])
    assert figures["num_trials_real"] == figures["num_trials_distilled"] == 4
    assert (figures["num_restarts"], figures["steps_redone"]) == (0, 0)

    runs = {run.info.run_id: run for run in _runs(tmp_path)}
    assert before <= set(runs)  # runs were found again, not made twice
    assert len(runs) == 1 + 2 * 4 + 2
    assert {run.info.status for run in runs.values()} == {"FINISHED"}  # trials stopped early did not fail
    parents = [run for run in runs.values() if "mlflow.parentRunId" not in run.data.tags]
    assert len(parents) == 1
    for run in [run for run in runs.values() if run not in parents]:
        assert run.data.tags["mlflow.parentRunId"] == parents[0].info.run_id
        assert run.data.metrics["best_val_miou"] >= 0
        names = {item.dataset.name for item in run.inputs.dataset_inputs}
        beside = {"synthetic", "labelled"} if run.data.tags["dakter.arm"] == "distilled" else set()
        assert names == {"tiles"} | beside
        assert (Path(run.info.artifact_uri.removeprefix("file://")) / "predictions.png").stat().st_size > 1000

    assert JOB.run(settings, Stop())["already_done"]
    with pytest.raises(ConflictError, match=r"students\.steps: 6 there, 8 asked for"):
        JOB.run(sweep_settings(sources, tmp_path, **out, **{"students.steps": 8}), Stop())
    storage.put_json(accept := str(tmp_path / "accept.json"), [3, 9])
    with pytest.raises(ConflictError, match=r"accept_digest: None there, '[0-9a-f]{64}' asked for"):
        JOB.run(sweep_settings(sources, tmp_path, **out, **{"paths.accept": accept}), Stop())

    assert artefacts(s3_requests(), "runs/a/") == {"sweep", "stages", "run.json"}
    assert beyond_jobs(s3_requests(), roles, s3_bucket) == set()


def test_networks_that_cannot_work_are_refused_before_anything_is_started(
    sources: Mapping[str, str], tmp_path: Path
) -> None:
    settings = sweep_settings(sources, tmp_path, **{"sweep.encoders": ["resnet18", "no-such-net"]})
    with pytest.raises(ConfigError, match="no-such-net"):
        JOB.run(settings, Stop())
    assert not (tmp_path / "mlflow.db").exists()


def test_a_large_corpus_streams_the_same_samples_for_the_same_step(sources: Mapping[str, str]) -> None:
    stream, again = shard_stream(sources["corpus"], 3), shard_stream(sources["corpus"], 3)
    drawn = [stream(step, 3) for step in range(7)]
    for images, soft in drawn:
        assert images.shape == (3, 1, 32, 32)
        assert (soft.sum(1, dtype=int) == 255).all()
    for step in (5, 6, 0):
        assert all(np.array_equal(one, two) for one, two in zip(again(step, 3), drawn[step], strict=True))


def test_students_learn_from_accepted_samples_alone(sources: Mapping[str, str], tmp_path: Path) -> None:
    storage.put_json(accept := str(tmp_path / "accept.json"), {"indices": [3, 9, 14]})
    everything, reader = CorpusReader(sources["corpus"]), CorpusReader(sources["corpus"], accept=accept)
    expected = everything.sample([3, 9, 14])
    held = in_memory(reader, StudentsConfig().corpus_memory_mb)
    assert held is not None
    assert all(np.array_equal(one, two) for one, two in zip(held, expected, strict=True))
    assert in_memory(reader, 0) is None
    stream = shard_stream(sources["corpus"], 3, accept)
    seen = {image.tobytes() for step in range(3) for image in stream(step, 3)[0]}
    assert seen == {image.tobytes() for image in expected[0]}
    storage.put_json(accept, [])
    with pytest.raises(DataError, match="no committed and accepted sample"):
        JOB.run(sweep_settings(sources, tmp_path, **{"paths.accept": accept}), Stop())


@dataclass
class Seen:
    """What a search told: trials at work at the same time, and who stepped back to an earlier step."""

    at_work: set[str] = field(default_factory=set)
    most: int = 0
    steps: dict[str, list[int]] = field(default_factory=dict)

    def started(self, trial_id: str, params: dict[str, Any]) -> None:
        self.at_work.add(trial_id)
        self.most = max(self.most, len(self.at_work))

    def result(self, trial_id: str, result: dict[str, Any]) -> None:
        self.steps.setdefault(trial_id, []).append(int(result["step"]))

    def ended(self, trial_id: str, good: bool) -> None:
        self.at_work.discard(trial_id)

    def live(self) -> Any:
        from jobs._sweep import Live

        return Live(started=self.started, result=self.result, ended=self.ended)


def _work(ray: Any, sources: Mapping[str, str], settings: DistillSettings, folder: Path) -> Any:
    from jobs._context import RunContext
    from jobs._sweep import SweepData, Work

    tiles = TileCorpus.open(sources["tiles"])
    train, val = (LabelledArrays(split.images, split.labels) for split in (tiles.read("train"), tiles.read("val")))
    data = SweepData(train, val, 5, ((Source(sources["corpus"], None), 1.0),))
    tally = beside_driver(ray, Tally)
    return Work(ray.put(data), tally, settings.students, settings.sweep, "real", str(folder), 1, False, RunContext())


def test_shares_of_a_gpu_pack_several_trials_and_what_never_fits_is_told(
    sources: Mapping[str, str], tmp_path: Path
) -> None:
    from jobs._sweep import run_trials

    shares = {"ray.num_gpus": 1, "ray.trial_gpus": 0.5, "ray.trial_workers": 4, "ray.num_cpus": 4}
    settings = sweep_settings(sources, tmp_path, **shares, **{"sweep.reduction_factor": 8.0})
    with session(settings.ray) as ray:  # one pretended GPU: the students themselves stay on the CPU
        seen = Seen()
        records = run_trials(_work(ray, sources, settings, tmp_path / "a"), settings.ray, seen.live())
        assert len(records) == 4
        assert seen.most == 2, "two halves of the one GPU, though four trials may run at a time"
        greedy = settings.ray.model_copy(update={"trial_gpus": 2.0, "start_timeout_s": 2})
        with pytest.raises(StorageError, match=r"asked for 1 x .*'GPU': 2\.0.*the cluster has .*'GPU': 1\.0"):
            run_trials(_work(ray, sources, settings, tmp_path / "b"), greedy, Seen().live())
