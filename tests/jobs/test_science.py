"""Suite ``science``: cells that are done, resuming, the budget, and the page."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dakter.data.tiles import TileCorpus
from dakter.errors import ConfigError, ConflictError, DataError, Stopped
from dakter.evaluate.bootstrap import Resampling
from dakter.evaluate.likeness import MEASURES
from dakter.evaluate.lookalikes import NUM_BINS, probability_at
from dakter.evaluate.packed import pack, pack_array, unpack, unpack_array
from dakter.schema import SOS
from jobs import _cli
from jobs.benchmark import JOB, BenchmarkSettings
from jobs.suites import _science_fractions as fractions
from jobs.suites import _science_lookalikes as lookalikes
from jobs.suites import _science_segmenters as segmenters
from jobs.suites import science
from jobs.suites._science_arms import ARMS, GENERATORS
from jobs.suites._science_cells import Workshop
from jobs.suites._science_identity import identity
from jobs.suites._science_images import equal_sets, measured
from jobs.suites._science_pairs import label_maps
from jobs.suites._science_plan import TIERS, generator_cell
from jobs.suites._science_settings import ScienceConfig

EVERY_ARM = "*-seed0"


def _settings(folder: Path, **more: Any) -> BenchmarkSettings:
    overrides = {"suite": "science", "tier": "short", "out": str(folder / "out"), "results": str(folder / "results")}
    return _cli.resolve(BenchmarkSettings, overrides={**overrides, **more})


def test_the_page_needs_records_and_no_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DAKTER_SOS_ROOT", raising=False)
    kept = Path(__file__).parents[2] / "results/science/scarce-cpu"
    shutil.copytree(kept, tmp_path / "results/science/scarce-cpu")
    page = JOB.run(_settings(tmp_path, tier="scarce-cpu", report=True), _cli.Stop())["page"]
    assert Path(page).read_text() == kept.with_suffix(".md").read_text()
    drawing = Path(page).with_suffix(".svg").read_text()
    assert drawing == kept.with_suffix(".svg").read_text()
    assert "ours-chosen-last − real (5)" in drawing
    # What is chosen stands for what it is chosen from, but not for more seeds than it has.
    assert "mean-teacher-last" not in drawing
    assert "relabel-views − real (3)" in drawing
    assert "relabel-chosen − real (1)" in drawing


def test_a_dry_run_lists_the_cells_and_report_is_a_bare_flag(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--suite", "science", "--tier", "short", "--out", str(tmp_path / "out"), "--results", str(tmp_path)]
    assert _cli.main(JOB, [*flags, "--dry-run", "--science.cells", "student-dakter-*"]) == 0
    told = capsys.readouterr().out
    assert "generator-paper-8-seed1" in told
    assert "student-dakter-fpn-seed0" in told
    assert "student-ours-" not in told
    assert _cli.main(JOB, [*flags, "--report"]) == 0
    assert "40: `data-8-seed0`" in (tmp_path / "science/short.md").read_text()


def test_tiers_and_places_are_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tier 'full'"):
        science.resolved("full", ScienceConfig())
    with pytest.raises(ConfigError, match="expected short or full"):
        JOB.run(_settings(tmp_path, suite="encoding", tier="headline"), _cli.Stop())
    monkeypatch.delenv("DAKTER_SOS_ROOT", raising=False)
    with pytest.raises(ConfigError, match="DAKTER_SOS_ROOT"):
        science.resolved("headline", ScienceConfig())
    (tmp_path / "unlabelled").mkdir()
    monkeypatch.setenv("DAKTER_SOS_ROOT", str(tmp_path / "dataset"))
    data = science.resolved("headline", ScienceConfig()).data
    assert (data.root, data.unlabelled_root) == (str(tmp_path / "dataset"), str(tmp_path / "unlabelled"))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the cells of one seed were done: every arm and every generator."""
    folder = tmp_path_factory.mktemp("science")
    JOB.run(_settings(folder, **{"science.cells": EVERY_ARM}), _cli.Stop())
    return folder


def _record(folder: Path, cell: str) -> dict[str, Any]:
    return dict(json.loads((folder / f"results/science/short/{cell}.json").read_text()))


def test_every_cell_leaves_a_small_record_and_is_not_done_again(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = sorted((done / "results/science/short").iterdir())
    assert len(records) == 2 + 4 + len(ARMS) + 4
    assert all(path.stat().st_size < 50_000 for path in records)
    student = _record(done, "student-ours-fpn-seed0")
    assert 0 <= student["figures"]["test"]["tables"]["simulated"]["miou"] <= 1
    assert student["identity"]["arm"]["real_unlabelled"] == "generator"
    assert set(student["figures"]["test"]["look_alikes"]) == {"simulated"}
    generator = _record(done, "generator-unlabelled-8-seed0")["figures"]
    scored = generator["against_fractions"]
    assert set(scored) == {"readout", "chains", "hard_masks", "fractions"}
    assert scored["readout"] != scored["chains"]
    for found in scored.values():
        assert found["cross_entropy"] >= scored["fractions"]["cross_entropy"] > 0
        assert found["brier"] >= scored["fractions"]["brier"] == 0
    assert _record(done, "generator-paper-8-seed0")["figures"]["against_fractions"] is None
    assert [row[0] for row in generator["loss"]] == [2, 4, 6]
    assert generator["segmenter"]["test"]["tables"]["pooled"]["nll"] > 0
    assert _record(done, "generator-paper-8-seed0")["figures"]["segmenter"] is None
    images = _record(done, "images-unlabelled-8-seed0")
    assert images["identity"]["student"]["architecture"] == "FPN"
    assert images["figures"]["encoder"] == "student-real-fpn-seed0"
    assert set(images["figures"]["likeness"]) == {"last_step", "readout", "real"}
    for found in images["figures"]["likeness"].values():
        assert set(found) == set(MEASURES)
        assert found["histogram"]["ratio"] > 0
        assert found["kernel"]["ratio"] > 0
    assert 0 <= images["figures"]["copies"]["share"] <= 1
    assert set(_record(done, "images-paper-8-seed0")["figures"]["likeness"]) == {"last_step", "real"}
    assert _record(done, "data-8-seed0")["figures"]["counts_by_sensor"]["unlabelled"]["simulated"] == 8
    monkeypatch.setattr(Workshop, "run", lambda self, cell: pytest.fail(f"{cell.name} was done again"))
    assert JOB.run(_settings(done, **{"science.cells": EVERY_ARM}), _cli.Stop())["already_done"]


def test_a_record_of_other_settings_is_refused(done: Path, tmp_path: Path) -> None:
    source, target = done / "results/science/short", tmp_path / "results/science/short"
    target.mkdir(parents=True)
    record = json.loads((source / "data-8-seed0.json").read_text())
    record["identity"]["data"]["val_share"] = 0.5
    (target / "data-8-seed0.json").write_text(json.dumps(record))
    with pytest.raises(ConflictError, match="val_share"):
        JOB.run(_settings(tmp_path, **{"science.cells": "data-8-seed0"}), _cli.Stop())


@pytest.mark.parametrize("workers", [1, 2])
def test_cells_are_not_done_beside_records_of_other_images(done: Path, tmp_path: Path, workers: int) -> None:
    record = _record(done, "data-8-seed0")
    record["figures"]["digest"] = "of other images"
    place = tmp_path / "results/science/short"
    place.mkdir(parents=True)
    (place / "data-8-seed0.json").write_text(json.dumps(record))
    asked = {"science.cells": "student-real-fpn-seed0", "science.workers": workers}
    with pytest.raises(ConflictError, match=r"data-8-seed0; expected the same images.*--results"):
        JOB.run(_settings(tmp_path, **asked), _cli.Stop())
    assert [path.name for path in place.iterdir()] == ["data-8-seed0.json"]


def test_working_files_of_other_settings_are_refused(done: Path) -> None:
    tier, folder = TIERS["short"], done / "out/science-short"
    longer = replace(tier, students=tier.students.model_copy(update={"steps": 5}))
    with pytest.raises(ConflictError, match="steps"):
        Workshop(longer, folder, lambda: False).student("real", ("FPN", "resnet18"), 0)
    more = replace(tier, train=tier.train.model_copy(update={"steps": 7}))
    with pytest.raises(ConflictError, match="steps"):
        Workshop(more, folder, lambda: False).pairs("unlabelled", 8, 0)


def test_the_page_tells_every_arm_and_what_is_open(done: Path, tmp_path: Path) -> None:
    shutil.copytree(done / "results", tmp_path / "results")
    for open_cell in ("student-dakter-fpn-seed0", "images-paper-8-seed0"):
        (tmp_path / f"results/science/short/{open_cell}.json").unlink()
    page = Path(JOB.run(_settings(tmp_path, report=True), _cli.Stop())["page"]).read_text()
    arms = page.split("## Arms")[1].split("##")[0].splitlines()
    for name in ARMS:
        (row,) = [line for line in arms if line.startswith(f"| **{name}**")]
        assert ("| open |" in row) == (name == "dakter"), row
        assert row.count("|") == 9
    miou = 100 * _record(done, "student-real-fpn-seed0")["figures"]["test"]["tables"]["simulated"]["miou"]
    (real,) = [line for line in arms if line.startswith("| **real** ")]
    assert f"| {miou:.1f} (" in real
    contrasts = page.split("## Contrasts")[1].split("##")[0]
    assert "ours − real (primary)" in contrasts
    ours = 100 * _record(done, "student-ours-fpn-seed0")["figures"]["test"]["tables"]["simulated"]["miou"]
    assert f"ours − real, mIoU seed by seed: {ours - miou:+.1f} (seed 0)." in contrasts
    assert "ours − relabel" in contrasts
    assert "dakter" not in contrasts
    assert "`student-dakter-fpn-seed0`" in page.split("## Open cells")[1]
    images = page.split("## Images")[1].split("##")[0].splitlines()
    (measured,) = [line for line in images if line.startswith("| unlabelled-8-seed0, p(y given x) |")]
    ratio = _record(done, "images-unlabelled-8-seed0")["figures"]["likeness"]["readout"]["spectrum"]["ratio"]
    assert f"{ratio:.2f} (" in measured.split("|")[5]
    assert not [line for line in images if line.startswith("| paper-8-seed0")], "not measured so far"
    assert "](short-curves.svg)" in page
    assert "unlabelled, 1 seed: NLL" in (tmp_path / "results/science/short-curves.svg").read_text()
    drawing = (tmp_path / "results/science/short.svg").read_text()
    assert 'xmlns="http://www.w3.org/2000/svg"' in drawing
    assert "ours − real" in drawing
    assert "p(y given x) of unlabelled − real" in drawing


def _rows(page: str, section: str) -> dict[str, list[str]]:
    """First cell -> the others, of the table of a section."""
    lines = [line for line in page.split(f"## {section}")[1].split("\n## ")[0].splitlines() if line.startswith("| ")]
    return {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]] for line in lines}


def _as_before(place: Path, key: str) -> None:
    """Make a record one of the time before it kept ``key``."""
    record = json.loads(place.read_text())
    del record["figures"]["test"][key]
    place.write_text(json.dumps(record))


def test_the_page_compares_look_alikes_at_the_oil_recall_of_real(done: Path, tmp_path: Path) -> None:
    shutil.copytree(done / "results", tmp_path / "results")
    place = tmp_path / "results/science/short"
    record = _record(tmp_path, "student-ours-fpn-seed0")
    # As if its students had told all look-alikes from oil, and those of real none; and a record of before.
    counts = np.zeros((8, 2, NUM_BINS), np.uint32)
    confusions = unpack(record["figures"]["test"]["packed"]["simulated"]).confusions
    counts[:, 0, 255], counts[:, 1, 0] = confusions[:, 1].sum(axis=1), 5 + confusions[:, 2].sum(axis=1)
    record["figures"]["test"]["look_alikes"]["simulated"] = pack_array(counts)
    (place / "student-ours-fpn-seed0.json").write_text(json.dumps(record))
    record = _record(tmp_path, "student-real-fpn-seed0")
    packed = unpack(record["figures"]["test"]["packed"]["simulated"])
    packed.confusions[:, 1] = [0, 3, 1, 0, 0]
    record["figures"]["test"]["packed"]["simulated"] = pack(packed)
    counts[:, 0], counts[:, 1] = 0, 0
    counts[:, 0, 200], counts[:, 1, 200] = 4, 20
    record["figures"]["test"]["look_alikes"]["simulated"] = pack_array(counts)
    (place / "student-real-fpn-seed0.json").write_text(json.dumps(record))
    _as_before(place / "student-hard-fpn-seed0.json", "look_alikes")
    page = Path(JOB.run(_settings(tmp_path, report=True), _cli.Stop())["page"]).read_text()
    rows = _rows(page, "At matched oil recall, look-alike taken for oil")
    assert "**hard**" not in rows
    assert "**real-all**" not in rows  # other labels
    assert "**p(y given x) of unlabelled**" in rows
    share = 100 * (0.75 * 160 + 0.5) / 161
    assert rows["**real**"][:4] == [
        "1 x 1",
        "75.0",
        f"{float(probability_at(200.25)):.3f}",
        f"{share:.2f} ({share:.2f} to {share:.2f})",
    ]
    assert rows["**real**"][4:] == ["1", "", ""]
    assert rows["**ours**"][1] == "75.0"
    assert rows["**ours**"][4].startswith("0.0")
    assert rows["**ours**"][6] == "met"
    assert {row[6] for name, row in rows.items() if name.startswith("**") and name != "**real**"} >= {"met"}
    assert "at or below 0.75" in page


def test_the_page_tells_soft_labels_against_fractions(done: Path) -> None:
    page = Path(JOB.run(_settings(done, report=True), _cli.Stop())["page"]).read_text()
    rows = _rows(page, "Soft labels against true class fractions")
    assert set(rows) == {"generator", "---", "labelled-8-seed0", "unlabelled-8-seed0"}
    found = _record(done, "generator-labelled-8-seed0")["figures"]["against_fractions"]
    assert rows["generator"][2:4] == ["chains: cross-entropy", "chains: Brier"]
    expected = [found[what][score] for what in ("readout", "chains") for score in ("cross_entropy", "brier")]
    assert rows["labelled-8-seed0"][:4] == [f"{value:.4f}" for value in expected]
    assert rows["labelled-8-seed0"][4:] == rows["unlabelled-8-seed0"][4:]  # of the data, not of the generator
    assert "cannot be scored so" in page


def test_the_page_tells_errors_away_from_borders(done: Path, tmp_path: Path) -> None:
    shutil.copytree(done / "results", tmp_path / "results")
    place = tmp_path / "results/science/short"
    record = _record(tmp_path, "student-ours-fpn-seed0")
    counts = unpack_array(record["figures"]["test"]["borders"]["simulated"])
    confusions = unpack(record["figures"]["test"]["packed"]["simulated"]).confusions
    np.testing.assert_array_equal(counts[:, 0], confusions)
    assert (counts.sum(axis=(2, 3))[:, 1:] <= counts.sum(axis=(2, 3))[:, :-1]).all()
    counts[:] = 0
    counts[:, 0, 0], counts[:, 1:, 0, 0] = [60, 30, 10, 0, 0], 50  # of 40 wrong pixels none is further than 2 away
    record["figures"]["test"]["borders"]["simulated"] = pack_array(counts)
    (place / "student-ours-fpn-seed0.json").write_text(json.dumps(record))
    _as_before(place / "student-hard-fpn-seed0.json", "borders")
    page = Path(JOB.run(_settings(tmp_path, report=True), _cli.Stop())["page"]).read_text()
    rows = _rows(page, "Away from the borders of masks")
    assert rows["**ours**"][:2] == ["1 x 1", "60.0 (60.0 to 60.0)"]
    assert rows["**ours**"][2:5] == ["100.0 (100.0 to 100.0)"] * 3
    assert rows["**ours**"][5:] == ["100.0 (100.0 to 100.0)", "50.0 (50.0 to 50.0)"]
    assert "**p(y given x) of unlabelled**" in rows
    assert "**hard**" not in rows


def test_the_page_tells_what_students_keep_of_the_gain_of_their_generator(done: Path, tmp_path: Path) -> None:
    shutil.copytree(done / "results", tmp_path / "results")
    place = tmp_path / "results/science/short"
    students = {name: _record(done, f"student-{name}-fpn-seed0")["figures"] for name in ARMS}

    def miou(name: str) -> float:
        return float(students[name]["test"]["tables"]["simulated"]["miou"])

    worst, *_, middle, best = (name for _, name in sorted({miou(name): name for name in students}.items()))
    for cell, name in (("student-real-fpn-seed0", worst), ("student-ours-fpn-seed0", middle)):
        (place / f"{cell}.json").write_text(json.dumps({**_record(done, cell), "figures": students[name]}))
    generator = _record(done, "generator-unlabelled-8-seed0")
    generator["figures"]["segmenter"]["test"] = students[best]["test"]
    (place / "generator-unlabelled-8-seed0.json").write_text(json.dumps(generator))
    page = Path(JOB.run(_settings(tmp_path, report=True), _cli.Stop())["page"]).read_text()
    own, whole = 100 * (miou(middle) - miou(worst)), 100 * (miou(best) - miou(worst))
    told = f"Students of `ours` keep {100 * own / whole:.0f} % of it: {own:+.1f} of {whole:+.1f}, 1 seed."
    assert told in page


def test_what_students_keep_is_told_for_both_ways_of_keeping_weights_on_the_seeds_of_all_three() -> None:
    def difference(a: dict[int, float], b: dict[int, float], *measure: object, same_architectures: bool) -> Any:
        return SimpleNamespace(difference=np.mean([a[seed] - b[seed] for seed in set(a) & set(b)]))

    generator = segmenters.named("unlabelled-chosen")
    students: Any = {
        "real": {0: 0.6, 1: 0.6, 2: 0.6, 3: 0.1},
        generator: {0: 0.7, 1: 0.8, 2: 0.9},
        "ours-chosen": {0: 0.65, 4: 0.1},
        "ours-chosen-last": {0: 0.68, 1: 0.76},
    }
    study: Any = SimpleNamespace(difference=difference)
    first, last = segmenters.kept(study, students, generator)
    assert first == "  Students of `ours-chosen` keep 50 % of it: +5.0 of +10.0, 1 seed."
    assert last == "  Students of `ours-chosen-last` keep 80 % of it: +12.0 of +15.0, 2 seeds."
    students[generator] = {0: 0.6}
    assert segmenters.kept(study, students, generator) == [], "no gain, nothing to keep"


def test_where_classes_do_not_tell_look_alikes_nothing_of_them_is_kept(done: Path) -> None:
    corpus = TileCorpus.open(str(done / "out/science-short/tiles/data-8-seed0"))
    assert lookalikes.kept(lambda images: images, corpus.read("val"), {}, SOS.names, 4) == {}
    val = corpus.read("val")
    assert val.fractions is not None
    assert fractions.measured({}, replace(val, fractions=None), 4) is None


def test_a_generator_goes_on_from_its_checkpoint_to_the_same_samples(done: Path, tmp_path: Path) -> None:
    def after(count: int) -> Callable[[], bool]:
        calls = iter(range(10**6))
        return lambda: next(calls) >= count

    tier = TIERS["short"]
    Workshop(tier, tmp_path, lambda: False).corpus(8, 0)
    with pytest.raises(Stopped):
        Workshop(tier, tmp_path, after(3)).model("unlabelled", 8, 0)
    (checkpoint,) = (tmp_path / "checkpoints/generator-unlabelled-8-seed0").glob("step-*")
    assert 0 < int(checkpoint.name.removeprefix("step-")) < tier.train.steps
    pairs = Workshop(tier, tmp_path, lambda: False).pairs("unlabelled", 8, 0)
    expected = Workshop(tier, done / "out/science-short", lambda: False).pairs("unlabelled", 8, 0)
    assert {"image", "last_step", "readout", "unlabelled"} == set(pairs)
    for key, values in expected.items():
        assert np.array_equal(pairs[key], values), key
    assert not (tmp_path / "checkpoints/generator-unlabelled-8-seed0").exists()


def test_a_spent_budget_begins_no_cell(done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = done / "results/science/short", tmp_path / "results/science/short"
    target.mkdir(parents=True)
    for cell in ("data-8-seed0", "student-real-fpn-seed0"):
        record = json.loads((source / f"{cell}.json").read_text())
        (target / f"{cell}.json").write_text(json.dumps({**record, "seconds": 600.0}))
    monkeypatch.setattr(Workshop, "run", lambda self, cell: pytest.fail(f"{cell.name} was begun"))
    budget = {"science.cells": "student-selftrain-fpn-seed0", "science.budget_minutes": 5.0}
    with pytest.raises(Stopped, match="1 of 3 cells are left"):
        JOB.run(_settings(tmp_path, **budget), _cli.Stop())
    assert Stopped.exit_status == 4


def test_streams_of_an_arm_hold_the_labels_that_it_says(done: Path) -> None:
    shop, architecture = Workshop(TIERS["short"], done / "out/science-short", lambda: False), ("FPN", "resnet18")
    corpus = TileCorpus.open(str(done / "out/science-short/tiles/data-8-seed0"))
    generated = {image.tobytes() for image in shop.pairs("unlabelled", 8, 0)["image"]}
    unlabelled = {image.tobytes() for image in corpus.read("unlabelled").images}
    stream = shop._stream(ARMS["ours"], architecture, 8, 0)
    assert stream is not None
    images, soft = stream(0, 6)
    assert [image.tobytes() in generated for image in images] == [True] * 3 + [False] * 3
    assert [image.tobytes() in unlabelled for image in images] == [False] * 3 + [True] * 3
    assert (soft.astype(int).sum(axis=1) == 255).all()
    hard = shop._stream(ARMS["hard"], architecture, 8, 0)
    assert hard is not None
    assert set(np.unique(hard(0, 6)[1])) == {0, 255}
    assert shop._stream(ARMS["real"], architecture, 8, 0) is None


def test_a_kind_with_the_weights_of_another_draws_images_for_label_maps(
    done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = replace(GENERATORS["unlabelled"], weights_of="unlabelled", render={"others": 1.0, "maps": "both"})
    monkeypatch.setitem(GENERATORS, "rendered", kind)
    tier, names = TIERS["short"], ["data-8-seed0", "generator-unlabelled-8-seed0"]
    cell = generator_cell("rendered", 8, 0)
    assert list(cell.needs) == names
    assert identity(tier, cell)["generator"]["render"] == {"others": 1.0, "maps": "both"}
    shop = Workshop(tier, done / "out/science-short", lambda: False)
    monkeypatch.setattr(Workshop, "_train", lambda *_: pytest.fail("its weights are there"))
    figures = shop.run(cell)
    assert (figures["weights_of"], figures["segmenter"]) == ("unlabelled", None)
    freely, drawn = shop.pairs("unlabelled", 8, 0), shop.pairs("rendered", 8, 0)
    train = shop.corpus(8, 0).read("train").labels
    masks = {view.tobytes() for mask in train for view in (np.rot90(m, k) for m in (mask, mask.T) for k in range(4))}
    from_model = freely["unlabelled"].argmax(axis=1).astype(np.uint8)
    of_model = {view.tobytes() for y in from_model for view in (np.rot90(m, k) for m in (y, y.T) for k in range(4))}
    assert np.array_equal(freely["unlabelled"], drawn["unlabelled"]), "of the same weights"
    assert not np.array_equal(freely["image"], drawn["image"])
    soft, turned = freely["unlabelled"], tier.train_of("unlabelled", 0).dihedral
    pool = label_maps(shop.corpus(8, 0), soft, kind.render, 0, turned=turned)
    given = pool.give(np.arange(64))
    found = [one.tobytes() for one in given.maps_BHW]
    assert set(found) <= masks | of_model
    assert set(found) & masks
    assert set(found) & of_model


def test_images_are_compared_in_sets_of_as_many_of_each_sensor() -> None:
    held_out, train = np.array([0, 0, 0, 1, 1, 2]), np.array([0] * 9 + [1] * 5 + [3] * 4)
    held_rows, sets = equal_sets(held_out, train)
    assert len(sets) == 2  # of sensor 1 there are two for each of val only twice
    for rows in sets:
        assert sorted(train[rows].tolist()) == sorted(held_out[held_rows].tolist()) == [0, 0, 0, 1, 1]
    assert len(np.unique(np.concatenate(sets))) == 10
    with pytest.raises(DataError, match="no sensor"):
        equal_sets(held_out, np.array([3, 3]))


def test_real_images_stand_in_for_generated_ones_where_there_are_enough(done: Path) -> None:
    corpus = TileCorpus.open(str(done / "out/science-short/tiles/data-8-seed0"))
    train, val = corpus.read("train"), corpus.read("val")
    yardstick = TileCorpus.open(str(done / "out/science-short/tiles/data-all-seed0")).read("train")
    assert len(yardstick.images) > len(train.images)
    few = replace(val, images=val.images[:3], labels=val.labels[:3], sensors=val.sensors[:3])

    def found(count: int) -> dict[str, Any]:
        soft = (np.arange(5)[:, None, None] == train.labels[:count, None]).astype(np.uint8) * 255
        return measured(
            {"image": train.images[:count], "last_step": soft},
            train,
            few,
            5,
            lambda images: images.mean(axis=(2, 3)),
            yardstick=yardstick,
            unlabelled=None,
            resampling=Resampling(20, 0, 0.9),
        )

    figures = found(8)
    assert figures["num_images"] == 3
    assert figures["num_sets"] == {"generated": 2, "train": len(yardstick.images) // 3}, "with every mask there is"
    assert set(figures["likeness"]) == {"last_step", "real"}
    assert figures["copies"]["share"] == 1.0
    with pytest.raises(DataError, match="2 generated images; expected at least the 3 of val"):
        found(2)
