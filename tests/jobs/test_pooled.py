"""Labels of the joint model and the control's students together: where they come from, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from copied_pairs import sweep_settings
from tiny_model import put_model_for

from dakter import storage
from dakter.corpus.reader import CorpusReader
from dakter.data.tiles import TileCorpus
from dakter.errors import ConfigError, ConflictError
from dakter.evaluate.calibration import proper_sums
from dakter.evaluate.pooling import pooled
from dakter.schema import soft_from_stored, soft_to_stored
from dakter.students.mix import MixedStudentsConfig
from dakter.students.models import StudentConfig, build, predict
from dakter.students.search import ARMS
from dakter.students.store import load_student, save_student
from dakter.students.train import LabelledArrays
from jobs._cli import Stop
from jobs._packages import open_joint_model, predict_raw, raw_values
from jobs._pooled import Pooled, Pooling
from jobs._sources import Mix
from jobs.distill import JOB, plan

pytestmark = pytest.mark.timeout(600)
POOLED = {
    "students.pooled_labels": True,
    "students.num_seeds": 2,
    "sweep.num_trials": 1,
    "sweep.architectures": ["FPN"],
    "sweep.synthetic_share": [0.5, 0.8],
}


def pooled_settings(places: Mapping[str, str], out: Path, **more: Any) -> Any:
    paths = {"paths.labelled": places["labelled"], "paths.model": places["model"]}
    return sweep_settings(places, out, **{**paths, **POOLED, **more})


def test_the_distilled_arm_learns_from_labels_pooled_with_the_students_of_real(
    mixed_sources: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = pooled_settings(mixed_sources, tmp_path)
    kept: list[tuple[Pooled, list[str]]] = []
    sweep, within = settings.place("sweep"), Pooled.within

    def seen(self: Pooled, *given: Any) -> Any:
        kept.append((self, [arm for arm in ARMS if storage.exists(f"{sweep}/search-{arm}.json")]))
        return within(self, *given)

    monkeypatch.setattr(Pooled, "within", seen)
    figures = JOB.run(settings, Stop())

    tiles = TileCorpus.open(mixed_sources["tiles"])
    val, manifest = tiles.read("val"), tiles.manifest
    told = storage.read_json(f"{sweep}/pool.json")
    networks = [load_student(f"{sweep}/students/real-seed{k}").model for k in range(2)]
    how = {"evaluations": 2, "seed": settings.students.seed}
    joint = open_joint_model(mixed_sources["model"], manifest.to_json(), manifest.class_table.names, **how)
    assert joint
    of_val = [
        predict_raw(joint.package(1.0), raw_values(val.images, manifest.value_range)),
        np.mean([predict(network, val.images) for network in networks], axis=0),
    ]
    weights = [told["weights"][name] for name in ("joint-model", "real")]
    for name, probabilities in (("joint-model", of_val[0]), ("real", of_val[1]), ("pool", pooled(of_val, weights))):
        nll, _, count = proper_sums(probabilities, val.labels).sum(axis=0)
        assert told["val_nll"][name] == pytest.approx(nll / count, rel=1e-4), name
    assert told["val_nll"]["pool"] <= min(told["val_nll"]["joint-model"], told["val_nll"]["real"]) + 1e-6
    assert figures["pool_weights_real"] == told["weights"]["real"]

    images, soft = CorpusReader(mixed_sources["labelled"]).sample(range(6))
    own = pooled([soft_from_stored(soft).numpy(), np.mean([predict(n, images) for n in networks], axis=0)], weights)
    ((found, searched),) = kept
    assert searched == ["real"], "the control comes first"
    assert np.abs(found.soft.astype(int) - soft_to_stored(own)).max() <= 1
    assert (found.soft != soft).any()


def pooling_of(places: Mapping[str, str], tmp_path: Path) -> Pooling:
    tiles, students = TileCorpus.open(places["tiles"]), MixedStudentsConfig(pooled_labels=True)
    mix = Mix.open(places["corpus"], None, places["labelled"], students, tiles)
    return Pooling.open(places["model"], mix, mix.sources(99), tiles, seed=0, record=str(tmp_path / "pool.json"))


def test_pooled_labels_stand_in_place_of_those_of_the_real_images_alone(mixed_sources: dict[str, str]) -> None:
    tiles = TileCorpus.open(mixed_sources["tiles"])
    students = MixedStudentsConfig(pooled_labels=True)
    sources = Mix.open(mixed_sources["corpus"], None, mixed_sources["labelled"], students, tiles).sources(99)
    generated, labelled = (source for source, _ in sources)
    soft = np.zeros_like(labelled.pairs[1]) if labelled.pairs else np.zeros(0)
    told: dict[str, dict[str, float]] = {"weights": {}, "val_nll": {}}
    (first, one), (second, other) = Pooled(soft, told).within(sources, labelled)
    assert (first, one, other) == (generated, 0.5, 0.5)
    assert second.pairs
    assert labelled.pairs
    assert (second.url, second.name) == (labelled.url, labelled.name)
    assert second.pairs[0] is labelled.pairs[0]
    assert second.pairs[1] is soft


def test_weights_that_stand_are_taken_over(mixed_sources: dict[str, str], tmp_path: Path) -> None:
    pooling = pooling_of(mixed_sources, tmp_path)
    val = TileCorpus.open(mixed_sources["tiles"]).read("val")
    storage.put_json(pooling.record, {"weights": {"joint-model": 0.25, "real": 0.75}, "val_nll": {}})
    assert pooling.labelled.pairs
    config = StudentConfig(architecture="FPN", encoder="tu-mobilenetv3_small_100")
    save_student(student := str(tmp_path / "student"), build(config, 1, 5), config, 1, 5, {})
    found = pooling.labels([student], LabelledArrays(val.images, val.labels), 1, "cpu")
    images, soft = pooling.labelled.pairs
    members = [soft_from_stored(soft).numpy(), predict(load_student(student).model, images)]
    assert np.array_equal(found.soft, soft_to_stored(pooled(members, [0.25, 0.75])))


def test_what_cannot_be_pooled_is_refused_before_a_student_is_trained(
    mixed_sources: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"take 0\.0352 MB decoded; expected at most students\.corpus_memory_mb, 0"):
        JOB.run(pooled_settings(mixed_sources, tmp_path / "a", **{"students.corpus_memory_mb": 0}), Stop())
    another = put_model_for(tmp_path / "model", mixed_sources["tiles"], dihedral=True)
    with pytest.raises(ConflictError, match=r"not of these tiles:(?s:.*)or leave students.pooled_labels out"):
        JOB.run(pooled_settings({**mixed_sources, "model": another}, tmp_path / "b"), Stop())
    for folder in ("a", "b"):
        assert not storage.exists(f"{tmp_path}/{folder}/sweep/search-real.json")
    for more in ({"paths.labelled": None}, {"students.unlabelled_share": 0.0}):
        with pytest.raises(ConfigError, match=r"pooled_labels is true without labelled real images to learn from"):
            plan(pooled_settings(mixed_sources, tmp_path / "c", **more))


def test_a_sweep_from_before_there_were_pooled_labels_goes_on(mixed_sources: dict[str, str]) -> None:
    tiles = TileCorpus.open(mixed_sources["tiles"])
    for pools in (False, True):
        students = MixedStudentsConfig(pooled_labels=pools)
        mix = Mix.open(mixed_sources["corpus"], None, mixed_sources["labelled"], students, tiles)
        assert ("pooled_labels" in mix.students(students)) == pools
