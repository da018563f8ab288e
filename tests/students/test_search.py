"""The space of the sweep: what each arm draws, what is refused up front, where trials are compared."""

from __future__ import annotations

from collections import Counter

import optuna
import pytest

from dakter.config import load
from dakter.errors import ConfigError
from dakter.students.search import SweepConfig, check, first_points, rungs, student_config, suggest
from dakter.students.train import StudentsConfig

SWEEP = SweepConfig(architectures=("Unet", "FPN", "Linknet"), encoders=("resnet18", "mit_b0"), num_trials=5)


def test_control_draws_nothing_about_generated_data_and_arms_start_alike() -> None:
    drawn = {}
    for arm in ("real", "distilled"):
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=3))
        trial = study.ask()
        fixed = suggest(SWEEP, arm, trial)
        drawn[arm] = student_config(SWEEP, {**trial.params, **fixed})
        assert ("synthetic_share" in trial.params) == (arm == "distilled")
    real, distilled = drawn["real"], drawn["distilled"]
    assert real.synthetic_share == 0.0 < 0.25 <= distilled.synthetic_share
    shared = {"architecture", "encoder", "learning_rate", "weight_decay", "ce_weight", "dice_weight"}
    assert real.model_dump(include=shared) == distilled.model_dump(include=shared)


def test_skipped_pairs_are_never_drawn_and_fixed_values_are_not_drawn_at_all() -> None:
    sweep = SWEEP.model_copy(update={"temperature": (1.0, 1.0)})
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    pairs: Counter[tuple[str, str]] = Counter()
    for _ in range(60):
        trial = study.ask()
        fixed = suggest(sweep, "distilled", trial)
        student = student_config(sweep, {**trial.params, **fixed})
        pairs[student.architecture, student.encoder] += 1
        assert student.temperature == 1.0
        assert "temperature" not in trial.params
    assert set(pairs) == {("Unet", "resnet18"), ("Unet", "mit_b0"), ("FPN", "resnet18"), ("FPN", "mit_b0"),
                          ("Linknet", "resnet18")}  # fmt: skip


def test_first_trials_take_one_of_each_architecture() -> None:
    points = first_points(SWEEP, seed=0)
    assert sorted(point["architecture"] for point in points) == ["FPN", "Linknet", "Unet"]
    assert len(first_points(SWEEP.model_copy(update={"num_trials": 2}), seed=0)) == 2
    assert len({tuple(p["architecture"] for p in first_points(SWEEP, seed)) for seed in range(8)}) > 1


def test_rungs_are_evaluations_before_the_end() -> None:
    common = StudentsConfig(steps=100, evaluate_every=10)
    assert rungs(SweepConfig(grace_steps=11, reduction_factor=3.0), common) == [20, 40]
    assert rungs(SweepConfig(grace_steps=100), common) == []


@pytest.mark.parametrize(
    ("sweep", "text"),
    [
        ({"architectures": ["UnetPlusPlus"], "encoders": ["mit_b0"]}, "leaves it no encoder"),
        ({"architectures": ["UnetPlusPlus"], "encoders": ["mit_b1"]}, "mit_b1"),
        ({"grace_steps": 2000}, "nothing could stop early"),
    ],
)
def test_what_could_fail_on_the_way_is_refused_up_front(sweep: dict, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        check(load(SweepConfig, sweep), StudentsConfig(), bands=1, size_px=64)


@pytest.mark.parametrize(
    "bad", [{"learning_rate": [0.0, 1.0]}, {"dice_weight": [1.0, 0.5]}, {"synthetic_share": [0, 1]}]
)
def test_ranges_must_be_ranges(bad: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        load(SweepConfig, bad)


def test_the_default_space_holds_six_architectures_that_all_work() -> None:
    sweep = SweepConfig()
    assert len(sweep.architectures) >= 6
    check(sweep.model_copy(update={"encoders": ("resnet18", "mit_b0")}), StudentsConfig(), bands=1, size_px=64)
