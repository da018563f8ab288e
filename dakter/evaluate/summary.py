"""What an evaluation says: scores of arms with intervals, contrasts between arms, and the candidate for promotion."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dakter.errors import DataError
from dakter.evaluate.bootstrap import (
    Estimate,
    Resampling,
    Statistic,
    arm_difference,
    arm_estimate,
    holm,
    mean_iou,
    ratio,
)
from dakter.evaluate.scores import CLASS_SCORES, Scores, number, numbers

CONTROL = "real"
# Arm, and id, of the joint model's own p(y | x): a model beside the students, no recipe with seeds.
JOINT_MODEL = "joint-model"
# The one contrast that is not corrected for looking at many.
PRIMARY = ("distilled", "miou")


# Of a record; the last two are the joint model's.
_KEPT = (
    *("id", "path", "seed", "architecture", "encoder", "num_parameters", "evaluations", "val_miou", "digest"),
    *("model_digest", "noise_seed"),
)


@dataclass(frozen=True)
class ScoredStudent:
    """A model's scores on test, and its record: of a student that in the sweep (``id``, ``path``, ``seed``,
    ``val_miou``, ...), of the joint model what evaluation says of it (``id``, ``val_miou``, ...)."""

    record: Mapping[str, Any]
    scores: Scores


Arms = Mapping[str, Sequence[ScoredStudent]]


def summarise(arms: Arms, groups: np.ndarray, class_names: tuple[str, ...], resampling: Resampling) -> dict[str, Any]:
    """The tables of ``evaluation.json``: ``arms``, ``contrasts`` and ``candidate``.

    Args:
        arms: students of each arm, at least one each, and the joint model as an arm of its own if it was scored; all
            on the same images in the same order.
        groups: group of near-duplicates of each image ``(N,)``.
        class_names: names of the K classes.
        resampling: draws of all intervals.

    Every interval resamples groups, and seeds where an arm has several students. Null means undefined: a class that
    does not occur, the precision of a class that some student never predicts.
    """
    return {
        "arms": {name: _arm(students, groups, class_names, resampling) for name, students in arms.items()},
        "contrasts": contrasts(arms, groups, class_names, resampling),
        "candidate": candidate(arms),
    }


def candidate(arms: Arms) -> dict[str, str]:
    """The student to put up for promotion: highest mIoU on val over all arms of students, the first of equals.

    The joint model is not among them; promotion takes it if it is asked to (``promotion.candidate``).
    """
    pairs = [(name, student) for name, students in arms.items() if name != JOINT_MODEL for student in students]
    if not pairs:
        raise DataError("the sweep holds no student; expected at least one: run jobs/distill.py to its end")
    name, best = max(pairs, key=lambda pair: float(pair[1].record["val_miou"]))
    return {"arm": name, "id": str(best.record["id"]), "why": "highest val mIoU"}


def contrasts(
    arms: Arms, groups: np.ndarray, class_names: tuple[str, ...], resampling: Resampling
) -> list[dict[str, Any]]:
    """Every other arm minus the control: mIoU, IoU a class, NLL and Brier score (lower is better for the last two).

    ``p_holm`` is Holm-corrected over all contrasts but the primary one, where it is null. Intervals are not widened.
    """
    if CONTROL not in arms:
        return []
    compared = [(name, measure) for name in arms if name != CONTROL for measure in _measures(class_names)]
    found = [
        arm_difference(
            measure.sums(arms[name]),
            measure.sums(arms[CONTROL]),
            groups,
            statistic=measure.statistic,
            resampling=resampling,
            batched=True,
        )
        for name, measure in compared
    ]
    primary = [(name, measure.metric) == PRIMARY for name, measure in compared]
    corrected = holm([math.nan if first else interval.p_value for first, interval in zip(primary, found, strict=True)])
    return [
        {
            "name": f"{name} - {CONTROL}",
            "metric": measure.metric,
            "class": measure.class_name,
            "primary": first,
            "difference": number(interval.difference),
            "low": number(interval.low),
            "high": number(interval.high),
            "num_resamples": interval.num_resamples,
            "level": interval.level,
            "p_value": number(interval.p_value),
            "p_holm": number(p_holm),
        }
        for (name, measure), first, interval, p_holm in zip(compared, primary, found, corrected, strict=True)
    ]


@dataclass(frozen=True)
class _Measure:
    """A score of an arm: per-image sums of its students ``(S, N, ...)``, and the statistic of such sums."""

    metric: str
    class_name: str | None
    sums: Callable[[Sequence[ScoredStudent]], np.ndarray]
    statistic: Statistic


def _measures(class_names: tuple[str, ...]) -> list[_Measure]:
    def confusions(students: Sequence[ScoredStudent]) -> np.ndarray:
        return np.stack([student.scores.confusions for student in students])

    def proper(column: int) -> Callable[[Sequence[ScoredStudent]], np.ndarray]:
        return lambda students: np.stack([student.scores.proper[:, [column, 2]] for student in students])

    return [
        _Measure("miou", None, confusions, mean_iou),
        *(_Measure("iou", name, confusions, _of_class("iou", k)) for k, name in enumerate(class_names)),
        _Measure("nll", None, proper(0), ratio),
        _Measure("brier", None, proper(1), ratio),
    ]


def _of_class(metric: str, k: int) -> Statistic:
    return lambda confusion: CLASS_SCORES[metric](confusion)[..., k]


def _arm(
    students: Sequence[ScoredStudent], groups: np.ndarray, class_names: tuple[str, ...], resampling: Resampling
) -> dict[str, Any]:
    confusions = np.stack([student.scores.confusions for student in students])
    tables = [student.scores.to_json(class_names) for student in students]

    def estimate(statistic: Statistic) -> dict[str, Any]:
        found = arm_estimate(confusions, groups, statistic=statistic, resampling=resampling, batched=True)
        return _interval_json(found, most=1.0)

    proper = {
        measure.metric: arm_estimate(
            measure.sums(students), groups, statistic=measure.statistic, resampling=resampling, batched=True
        )
        for measure in _measures(class_names)
        if measure.metric in ("nll", "brier")
    }
    out: dict[str, Any] = {"miou": estimate(mean_iou)}
    for metric in CLASS_SCORES:
        out[metric] = [{"class": name} | estimate(_of_class(metric, k)) for k, name in enumerate(class_names)]
    for key in ("nll", "brier", "ece", "nll_tempered", "brier_tempered", "ece_tempered"):
        out[key] = _mean([table[key] for table in tables])
    out["nll_interval"], out["brier_interval"] = (
        _interval_json(proper["nll"], most=math.inf),
        _interval_json(proper["brier"], most=2.0),
    )
    out["students"] = [
        {key: student.record[key] for key in _KEPT if key in student.record} | table
        for student, table in zip(students, tables, strict=True)
    ]
    return out


def _interval_json(found: Estimate, *, most: float) -> dict[str, Any]:
    bounds = found.within(most)
    return {"mean": number(bounds.mean), "low": number(bounds.low), "high": number(bounds.high)}


def _mean(values: list[Any]) -> Any:
    """Mean over students of a number, or of each entry of lists; null if any is."""
    array = np.array(values, dtype=np.float64)  # None becomes NaN
    mean = array.mean(axis=0)
    return numbers(mean) if mean.ndim else number(float(mean))
