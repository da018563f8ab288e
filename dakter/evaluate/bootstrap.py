"""Intervals for scores and for their differences: a paired bootstrap over groups of test images, seeds resampled too.

One draw takes groups of near-duplicate images with replacement (images of a group are no independent evidence), the
same groups for both arms, and for arms of several students also seeds. Intervals are percentile intervals
(Efron & Tibshirani 1993, chapter 13). Scores are functions of sums over images (a confusion matrix, a summed loss),
so a draw is one row of multinomial counts times the sums of the groups.

A class without a true pixel in a draw has no score there: ``dakter.metrics.iou`` leaves it out of the mean, for both
arms alike since both are scored on the same labels. Draws in which the score itself is undefined are left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dakter.errors import ConfigError, DataError
from dakter.metrics import iou
from dakter.rng import numpy_rng

# From sums over images ``(K, K)`` (or of any fixed shape) to one number; NaN where undefined.
Statistic = Callable[[np.ndarray], "float | np.ndarray"]


@dataclass(frozen=True)
class Interval:
    """A difference of two scores (a minus b) with its bootstrap interval.

    Attributes:
        difference: on the test set as it is; NaN where undefined.
        low, high: bounds of the interval at ``level``; NaN if no draw had a score.
        num_resamples: draws asked for.
        level: nominal coverage, e.g. 0.95.
        p_value: two-sided, for "no difference": the interval inverted, with the usual +1 (Davison & Hinkley 1997,
            4.2.3).
    """

    difference: float
    low: float
    high: float
    num_resamples: int
    level: float
    p_value: float


@dataclass(frozen=True)
class Estimate:
    """The mean score of an arm's students with its bootstrap interval; NaN where undefined."""

    mean: float
    low: float
    high: float

    def within(self, most: float) -> Estimate:
        """Bounds within what the score can be (0 to ``most``): widening by few seeds may carry draws beyond."""
        low, high = (float(np.clip(bound, 0.0, most)) for bound in (self.low, self.high))
        return Estimate(self.mean, low, high)


@dataclass(frozen=True)
class Resampling:
    """How to draw: number of draws, seed, nominal coverage."""

    num_resamples: int
    seed: int
    level: float

    def __post_init__(self) -> None:
        if self.num_resamples < 1 or not 0 < self.level < 1:
            raise ConfigError(
                f"bootstrap: {self.num_resamples} resamples at level {self.level}; expected at least 1 resample and "
                "a level between 0 and 1 (0.95, say)"
            )


def mean_iou(confusion: np.ndarray) -> np.ndarray:
    """``dakter.metrics.miou`` over the last two axes of ``(..., K, K)``; NaN where no pixel is labelled."""
    scores = iou(confusion)
    present = ~np.isnan(scores)
    count = present.sum(axis=-1)
    return np.divide(
        np.where(present, scores, 0.0).sum(axis=-1), count, out=np.full(count.shape, np.nan), where=count > 0
    )


def ratio(sums: np.ndarray) -> np.ndarray:
    """``sum / count`` from ``(..., 2)``: a loss a pixel from per-image sums and pixel counts; NaN for no pixel."""
    return np.divide(sums[..., 0], sums[..., 1], out=np.full(sums.shape[:-1], np.nan), where=sums[..., 1] > 0)


def paired_difference(
    confusion_a: np.ndarray,
    confusion_b: np.ndarray,
    groups: np.ndarray,
    *,
    statistic: Statistic,
    num_resamples: int,
    seed: int,
    level: float,
    batched: bool = False,
) -> Interval:
    """Difference of two models scored on the same images, a minus b.

    Args:
        confusion_a, confusion_b: per-image sums ``(N, K, K)`` (rows true class), or ``(N, ...)`` of one shape.
        groups: group of near-duplicates of each image, integers ``(N,)``.
        statistic: from one sum ``(K, K)`` to a number, e.g. ``dakter.metrics.miou``.
        num_resamples, seed, level: draws, seed of the draws, nominal coverage.
        batched: ``statistic`` takes ``(..., K, K)`` and returns ``(...)``: one call instead of one a draw.

    Raises:
        DataError: shapes that do not fit, or no image.
        ConfigError: no resample, or a level outside (0, 1).
    """
    return arm_difference(
        confusion_a[None],
        confusion_b[None],
        groups,
        statistic=statistic,
        resampling=Resampling(num_resamples, seed, level),
        batched=batched,
    )


def arm_difference(
    arm_a: np.ndarray,
    arm_b: np.ndarray,
    groups: np.ndarray,
    *,
    statistic: Statistic,
    resampling: Resampling,
    batched: bool = False,
    paired_seeds: bool = False,
) -> Interval:
    """Difference of the mean scores of two arms of students, a minus b; test images paired, seeds drawn an arm.

    Args:
        arm_a, arm_b: ``(S, N, ...)`` per-image sums of the students of each arm; S may differ. With one student an
            arm, its seed's luck is not in the interval: it speaks of these two students, not of their recipes.
        groups, statistic, batched: as in ``paired_difference``.
        resampling: draws.
        paired_seeds: student number s of both arms shares its seed (the same labelled subset, say): a draw takes the
            same seeds for both.

    Raises:
        DataError: seeds are to be paired and the arms have different numbers of students.
    """
    if paired_seeds and len(arm_a) != len(arm_b):
        raise DataError(f"bootstrap: {len(arm_a)} and {len(arm_b)} students; expected as many, as seeds are paired")
    counts = _group_counts(groups, resampling)
    value_a, draws_a = _scores(arm_a, groups, counts, statistic, batched, resampling, "a")
    value_b, draws_b = _scores(arm_b, groups, counts, statistic, batched, resampling, "a" if paired_seeds else "b")
    draws = draws_a - draws_b
    low, high = _bounds(draws, resampling.level)
    return Interval(value_a - value_b, low, high, resampling.num_resamples, resampling.level, p_value(draws))


def arm_estimate(
    arm: np.ndarray, groups: np.ndarray, *, statistic: Statistic, resampling: Resampling, batched: bool = False
) -> Estimate:
    """Mean score of an arm's students ``(S, N, ...)`` with its interval; arguments as in ``arm_difference``."""
    counts = _group_counts(groups, resampling)
    value, draws = _scores(arm, groups, counts, statistic, batched, resampling, "a")
    return Estimate(value, *_bounds(draws, resampling.level))


def p_value(draws: np.ndarray) -> float:
    """Two-sided p of "zero" from bootstrap draws of a difference ``(R,)``, NaN left out; NaN if none is left."""
    known = draws[~np.isnan(draws)]
    if not known.size:
        return float("nan")
    tail = min(int((known <= 0).sum()), int((known >= 0).sum()))
    return min(1.0, 2.0 * (1 + tail) / (1 + known.size))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (Holm 1979): adjusted p in the order given; NaN stays and is not counted."""
    order = sorted((i for i, p in enumerate(p_values) if not math.isnan(p)), key=lambda i: p_values[i])
    adjusted, highest = list(p_values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def _group_counts(groups: np.ndarray, resampling: Resampling) -> np.ndarray:
    """How often each group is drawn, float64 ``(R, G)``: rows sum to G."""
    num_groups = np.unique(groups).size
    if not num_groups:
        raise DataError("bootstrap: no test image; expected at least one")
    rng = numpy_rng(resampling.seed, "evaluate/bootstrap/groups")
    draws = rng.multinomial(num_groups, np.full(num_groups, 1.0 / num_groups), size=resampling.num_resamples)
    return draws.astype(np.float64)


def _scores(
    arm: np.ndarray,
    groups: np.ndarray,
    counts: np.ndarray,
    statistic: Statistic,
    batched: bool,
    resampling: Resampling,
    name: str,
) -> tuple[float, np.ndarray]:
    """Mean score of an arm, and that of every draw ``(R,)``."""
    if arm.ndim < 2 or not arm.shape[0] or arm.shape[1:2] != groups.shape:
        raise DataError(
            f"bootstrap: per-image sums {arm.shape} and groups {groups.shape}; expected (students, images, ...) with "
            "at least one student, and (images,)"
        )
    num_students, shape = arm.shape[0], arm.shape[2:]
    members = np.unique(groups, return_inverse=True)[1]
    sums = np.zeros((counts.shape[1], num_students, *shape))
    np.add.at(sums, members, np.moveaxis(arm, 0, 1))
    drawn = (counts @ sums.reshape(len(sums), -1)).reshape(-1, num_students, *shape)

    def score(values: np.ndarray) -> np.ndarray:
        if batched:
            return np.asarray(statistic(values), dtype=np.float64)
        flat = values.reshape(-1, *shape)
        return np.array([float(statistic(value)) for value in flat]).reshape(values.shape[:2])

    value = float(score(sums.sum(axis=0)[None])[0].mean())
    return value, (score(drawn) * _seed_weights(num_students, resampling, name)).sum(axis=1)


def _seed_weights(num_students: int, resampling: Resampling, name: str) -> np.ndarray:
    """Weights of the students in each draw, ``(R, S)``, rows sum to 1.

    Drawing S seeds with replacement gives a variance too small by (S-1)/S, which matters for two or three seeds, so
    deviations from equal weights are stretched by sqrt(S/(S-1)) (Rao & Wu 1988's rescaled bootstrap, for a mean).
    """
    if num_students == 1:
        return np.ones((resampling.num_resamples, 1))
    rng = numpy_rng(resampling.seed, f"evaluate/bootstrap/seeds/{name}")
    equal = np.full(num_students, 1.0 / num_students)
    drawn = rng.multinomial(num_students, equal, size=resampling.num_resamples) / num_students
    return equal + (drawn - equal) * math.sqrt(num_students / (num_students - 1))


def _bounds(draws: np.ndarray, level: float) -> tuple[float, float]:
    """Percentile bounds, NaN draws left out."""
    known = draws[~np.isnan(draws)]
    if not known.size:
        return float("nan"), float("nan")
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
