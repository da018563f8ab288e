"""Suite ``science`` as a description: arms, tiers, cells in order, and the records that were kept of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dakter.errors import ConfigError
from dakter.students.train import rows_of_batch
from jobs.suites import science
from jobs.suites._science_arms import ALL_ARMS, ARMS, GENERATORS, LAST
from jobs.suites._science_chosen import CHOICES, CHOSEN, by_val, stands_for
from jobs.suites._science_contrasts import CONTRASTS
from jobs.suites._science_plan import TIERS, cells, select
from jobs.suites._science_pool import in_order


@pytest.mark.parametrize("name", TIERS)
def test_every_cell_stands_on_earlier_cells_and_its_settings_are_sound(name: str) -> None:
    tier, seen = TIERS[name], set[str]()
    for cell in cells(tier):
        assert cell.name not in seen
        assert set(cell.needs) <= seen
        seen.add(cell.name)
        if cell.generator:
            assert tier.diffusion_of(cell.generator).mode in ("joint", "independent")
        if cell.arm and cell.architecture:
            assert tier.student_of(ALL_ARMS[cell.arm], *cell.architecture).synthetic_share < 1
    students = [cell for cell in cells(tier) if cell.kind == "student"]
    assert len(students) == len(tier.arms) * len(tier.seeds) * len(tier.architectures)
    of_arms = {(ALL_ARMS[arm].generator, tier.labels_of(ALL_ARMS[arm])) for arm in tier.arms if ALL_ARMS[arm].generator}
    images = [cell for cell in cells(tier) if cell.kind == "images"]
    beside = {(kind, tier.num_labelled) for kind in tier.generators} if "real" in tier.arms else set()
    assert {(cell.generator, cell.labels) for cell in images} == of_arms | beside
    assert len(images) == len(of_arms | beside) * len(tier.seeds)


@pytest.mark.parametrize("name", [name for name, tier in TIERS.items() if tier.reads_test])
def test_every_arm_of_a_tier_is_compared_with_another(name: str) -> None:
    tier = TIERS[name]
    chosen = {name for name in CHOSEN if {name.replace("chosen", choice) for choice in CHOICES} <= set(tier.arms)}
    asked = [pair for pair in (tier.primary, *CONTRASTS) if set(pair) <= set(tier.arms) | chosen]
    assert tier.primary in asked
    assert {arm for pair in asked for arm in pair} == set(tier.arms) | chosen
    assert len(set(CONTRASTS)) == len(CONTRASTS)


def test_val_chooses_the_generator_of_a_seed_and_its_students_stand_for_it() -> None:
    tier = TIERS["scarce-cpu"]
    nll = {("views", 0): [0.4, 0.2, 0.3], ("mean-teacher", 0): [0.25, 0.25, 0.25]}
    nll |= {("views", 1): [0.4, 0.5], ("mean-teacher", 1): [0.45, 0.35], ("views", 2): [0.1]}
    found = {cell.name: cell for cell in cells(tier)}
    done = [found[f"generator-unlabelled-{choice}-10-seed{seed}"] for choice, seed in nll]
    records = {
        cell.name: {"figures": {"curve": [{"val_nll": value} for value in values]}}
        for cell, values in zip(done, nll.values(), strict=True)
    }
    chosen = by_val([*done, found["student-real-unet-seed0"]], records)
    assert chosen == {0: "views", 1: "mean-teacher"}, "the third seed lacks one"
    standing = {name: stands_for(cell, chosen) for name, cell in found.items()}
    assert {name: arm for name, arm in standing.items() if arm and name.startswith("student")} == {
        "student-relabel-views-unet-seed0": "relabel-chosen",
        "student-ours-views-unet-seed0": "ours-chosen",
        "student-relabel-mean-teacher-unet-seed1": "relabel-chosen",
        "student-ours-mean-teacher-unet-seed1": "ours-chosen",
        "student-relabel-views-last-unet-seed0": "relabel-chosen-last",
        "student-ours-views-last-unet-seed0": "ours-chosen-last",
        "student-relabel-mean-teacher-last-unet-seed1": "relabel-chosen-last",
        "student-ours-mean-teacher-last-unet-seed1": "ours-chosen-last",
        "student-relabel-views-pooled-last-unet-seed0": "relabel-chosen-pooled-last",
        "student-ours-views-pooled-last-unet-seed0": "ours-chosen-pooled-last",
        "student-relabel-mean-teacher-pooled-last-unet-seed1": "relabel-chosen-pooled-last",
        "student-ours-mean-teacher-pooled-last-unet-seed1": "ours-chosen-pooled-last",
    }
    assert {name for name, arm in standing.items() if arm == "unlabelled-chosen"} == {
        "generator-unlabelled-views-10-seed0",
        "generator-unlabelled-mean-teacher-10-seed1",
    }


def test_arms_use_what_their_generator_can_do() -> None:
    for name, arm in ALL_ARMS.items():
        knows = arm.generator is not None and GENERATORS[arm.generator].labels_images
        assert knows or (arm.generated != "readout" and arm.real_unlabelled != "generator"), name
    assert [name for name, arm in ARMS.items() if arm.real_unlabelled] == ["selftrain", "relabel", "ours"]
    unlabelled = {n for n, arm in ARMS.items() if arm.generator and GENERATORS[arm.generator].unlabelled}
    assert unlabelled == {"relabel", "ours"}
    assert not TIERS["headline"].train_of("labelled", 0).unlabelled_share


def test_the_first_arm_comes_first_on_every_seed() -> None:
    """All others are compared with it: a budget that ends early must not leave it out on some seeds."""
    tier = TIERS["scarce"]
    ordered = in_order(tier, cells(tier))
    assert [cell.kind for cell in ordered] == sorted(
        (cell.kind for cell in ordered), key=["data", "generator", "student", "images"].index
    )
    students = [cell for cell in ordered if cell.kind == "student"]
    assert [(cell.arm, cell.seed) for cell in students[:11]] == [("real", s) for s in range(10)] + [("hard", 0)]
    generators = [cell.seed for cell in ordered if cell.kind == "generator"]
    assert generators == sorted(generators)


def test_records_that_are_kept_are_of_the_settings_of_now() -> None:
    """A change of settings that makes finished cells void must be meant: they take GPU hours to do again."""
    folders = [path for path in (Path(__file__).parents[2] / "results/science").iterdir() if path.is_dir()]
    assert {folder.name for folder in folders} >= {"headline", "scarce-cpu"}
    for folder in folders:
        tier = TIERS[folder.name]
        records = science.Records(str(folder), tier, dict)
        assert set(records.finished(cells(tier))) == {path.stem for path in folder.glob("*.json")}


def test_arms_of_student_settings_change_one_of_them() -> None:
    tier = TIERS["ablation"]
    ours = tier.student_of(ARMS["ours"], "Unet", "resnet18")
    for name, key in (
        ("ours-confidence", "confidence_gamma"),
        ("ours-consistency", "consistency_weight"),
        ("ours-schedule", "final_share"),
    ):
        assert name in tier.arms
        arm = ALL_ARMS[name]
        assert replace(arm, what=ARMS["ours"].what, student={}) == ARMS["ours"]
        changed = tier.student_of(arm, "Unet", "resnet18")
        assert {k for k in type(ours).model_fields if getattr(changed, k) != getattr(ours, k)} == {key}
        assert changed.dump() == {**ours.dump(), key: getattr(changed, key)}


def test_students_of_the_last_step_differ_in_that_and_in_rows_of_real_pairs_alone() -> None:
    tier = TIERS["scarce-cpu"]
    for name, last in LAST.items():
        arm = ALL_ARMS[name.removesuffix("-last")]
        assert replace(last, what=arm.what, shared={}, share=arm.share) == arm
        assert tier.students_of(last) == tier.students_of(arm).model_copy(update={"keep": "last"})
        student = tier.student_of(last, "Unet", "resnet18")
        real, soft = rows_of_batch(student, tier.students_of(last), last.mixes)
        assert (real, soft) == ((32, 0) if name == "real-last" else (1, 31))


def test_cells_are_chosen_with_what_they_need() -> None:
    everything = cells(TIERS["short"])
    names = [cell.name for cell in select(everything, "student-selftrain-*-seed1")]
    assert names == ["data-8-seed1", "student-real-fpn-seed1", "student-selftrain-fpn-seed1"]
    names = [cell.name for cell in select(everything, "images-paper-8-seed0")]
    own = ["generator-paper-8-seed0", "student-real-fpn-seed0", "images-paper-8-seed0"]
    assert {name for name in names if name not in own} == {"data-8-seed0", "data-all-seed0"}
    assert [name for name in names if name in own] == own
    with pytest.raises(ConfigError, match="fits no cell"):
        select(everything, "student-theirs-*")
