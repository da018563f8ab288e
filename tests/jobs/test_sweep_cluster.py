"""A sweep over several raylets of which some are lost: the students of one process, and the steps it cost are told."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from copied_pairs import sweep_settings
from joined_job import join, node_with

from dakter import storage
from dakter.corpus.reader import CorpusReader
from dakter.data.tiles import TileCorpus
from dakter.rng import derive_seed
from dakter.students import search
from dakter.students.search import ARMS, Arm
from dakter.students.store import load_student
from dakter.students.train import FitResult, LabelledArrays, fit
from jobs._sources import Source
from jobs.distill import DistillSettings
from jobs.suites._raylets import cluster

pytestmark = pytest.mark.timeout(400)
STEPS, EVERY = 30, 3
# A space of one point, so that it is known beforehand which students there will be.
ONE_POINT = {
    "students.steps": STEPS,
    "students.evaluate_every": EVERY,
    "sweep.num_trials": 1,
    "sweep.grace_steps": EVERY,
    "sweep.architectures": ["FPN"],
    "sweep.learning_rate": [3e-3, 3e-3],
    "sweep.weight_decay": [1e-4, 1e-4],
    "sweep.ce_weight": [1.0, 1.0],
    "sweep.dice_weight": [0.5, 0.5],
    "sweep.kd_weight": [1.0, 1.0],
    "sweep.temperature": [1.0, 1.0],
    "sweep.synthetic_share": [0.5, 0.5],
    "ray.trial_workers": 1,
    "log_level": "DEBUG",  # tells of every look at val
}


class OnePoint:
    """Draws the one point there is."""

    def suggest_categorical(self, name: str, choices: Sequence[str]) -> str:
        (only,) = choices
        return only

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        raise AssertionError(f"{name} is no single value")


def undisturbed(settings: DistillSettings) -> dict[str, FitResult]:
    """Trial and student of each arm, made in this process without Ray: ``"real trial"``, ``"real student"``, ..."""
    from jobs._sweep import SweepData

    torch.set_num_threads(1)  # as each worker has; sums over two would differ in the last digits
    tiles, corpus = TileCorpus.open(settings.place("tiles")), CorpusReader(settings.place("corpus"))
    train, val = (LabelledArrays(split.images, split.labels) for split in (tiles.read("train"), tiles.read("val")))
    pairs = corpus.sample(range(corpus.num_samples))
    data = SweepData(train, val, len(tiles.manifest.class_table), ((Source(corpus.url, pairs), 1.0),))

    def alone(arm: Arm, seed: int) -> FitResult:
        drawn = search.suggest(settings.sweep, arm, OnePoint())
        return fit(
            search.student_config(settings.sweep, {"architecture": "FPN", **drawn}),
            settings.students,
            train,
            val,
            data.stream(arm, seed),
            num_classes=data.num_classes,
            seed=seed,
            on_evaluate=lambda now: None,
            should_stop=lambda: False,
        )

    common = settings.students.seed
    trials = {f"{arm} trial": alone(arm, derive_seed(common, "sweep/trial")) for arm in ARMS}
    return trials | {f"{arm} student": alone(arm, derive_seed(common, "sweep/final", 0)) for arm in ARMS}


def test_nodes_lost_in_the_search_and_in_the_final_round_cost_steps_and_change_no_student(
    sources: dict[str, str], tmp_path: Path
) -> None:
    tracking = {"tracking.uri": f"sqlite:///{Path(sources['tiles']).parent}/mlflow.db"}
    settings = sweep_settings(sources, tmp_path / "run", **ONE_POINT, **tracking)
    env = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}
    threads = torch.get_num_threads()
    with cluster(env, 0) as made, ThreadPoolExecutor(1) as pool:
        job = join(made, "distill", settings)  # waits for the nodes, as they come up
        for _ in range(2):
            made.add(num_cpus=1, wait=False)
        expected = pool.submit(undisturbed, settings)
        for at_work, title in ((r"real-\w{8}: step", "ray::ImplicitFunc"), ("real-seed0: step", "ray::train_final")):
            job.until(functools.partial(job.said, at_work))
            made.lose(node_with(made, title))
            made.add(num_cpus=1, wait=False)
        assert job.ended() == 0, job.log()[-4000:]
        alone = expected.result()
    torch.set_num_threads(threads)

    found = storage.read_json(str(tmp_path / "run/sweep/sweep.json"))
    for arm in ARMS:
        (trial,), (student,) = found["arms"][arm]["search"]["trials"], found["arms"][arm]["students"]
        least, most = (1, STEPS - 1) if arm == "real" else (0, 0)
        for row in (trial, student):
            assert (row["steps"], row["num_restarts"]) == (STEPS, least)
            assert least <= row["steps_redone"] <= most
        reports = (tmp_path / f"run/sweep/tune/{arm}/{trial['id']}/result.json").read_text().splitlines()
        looks = [{key: look[key] for key in ("step", "loss", "val_miou")} for look in map(json.loads, reports)]
        history = alone[f"{arm} trial"].history
        assert looks[-len(history) :] == history
        assert all(look in history for look in looks), "of the start that was lost too"
        assert len(looks) >= len(history) + least
        assert student["history"] == alone[f"{arm} student"].history
        weights = alone[f"{arm} student"].model.state_dict()
        stored = load_student(str(tmp_path / "run/sweep" / student["path"])).model.state_dict()
        assert all(torch.equal(stored[name], weights[name]) for name in weights)
    assert found["figures"]["num_restarts"] == 2
    rows = [row for arm in found["arms"].values() for row in (*arm["search"]["trials"], *arm["students"])]
    assert found["figures"]["steps_redone"] == sum(row["steps_redone"] for row in rows) >= 2
