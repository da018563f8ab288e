"""A study of arms crossed with seeds and architectures on several sensors: means, paired intervals, worth in labels.

A score of an arm is the mean over sensors, architectures and seeds of the score of one student on one sensor's test
images. A bootstrap draw takes groups of near-duplicate test images and seeds, the same for both sides of a
difference; architectures and sensors are fixed. What is missing is left out on both sides alike.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from dakter.errors import DataError
from dakter.evaluate.bootstrap import (
    Estimate,
    Interval,
    Resampling,
    Statistic,
    arm_difference,
    arm_estimate,
    mean_iou,
    ratio,
)
from dakter.evaluate.scores import Scores
from dakter.metrics import iou

# What is known of one student on the test images of one sensor, as a rule its ``Scores``.
S = TypeVar("S")
# Of one student: sensor -> that.
BySensor = Mapping[str, S]
# Students of an arm: seed -> architecture -> scores.
Students = Mapping[int, Mapping[str, BySensor[S]]]


@dataclass(frozen=True)
class Measure(Generic[S]):
    """A score of one student on one sensor: per-image sums ``(N, ...)``, and the statistic of their total."""

    name: str
    sums: Callable[[S], np.ndarray]
    statistic: Statistic


MIOU: Measure[Scores] = Measure("miou", lambda scores: scores.confusions, mean_iou)
NLL: Measure[Scores] = Measure("nll", lambda scores: scores.proper[:, [0, 2]], ratio)
BRIER: Measure[Scores] = Measure("brier", lambda scores: scores.proper[:, [1, 2]], ratio)


def class_iou(k: int) -> Measure[Scores]:
    """IoU of class ``k``."""
    return Measure(f"iou{k}", lambda scores: scores.confusions, lambda confusion: iou(confusion)[..., k])


@dataclass(frozen=True)
class Study:
    """``groups``: sensor -> group of near-duplicates of its test images, integers ``(N,)``; ``resampling``: draws."""

    groups: Mapping[str, np.ndarray]
    resampling: Resampling

    def estimate(self, arm: Students[S], measure: Measure[S]) -> Estimate:
        """Mean of an arm over its largest complete block of seeds and architectures, with its interval."""
        seeds, architectures = block([arm])
        return arm_estimate(
            self._sums(arm, seeds, architectures, measure),
            self._all_groups(),
            statistic=_mean_over_slots(measure.statistic),
            resampling=self.resampling,
            batched=True,
        )

    def difference(
        self, a: Students[S], b: Students[S], measure: Measure[S], *, same_architectures: bool = True
    ) -> Interval:
        """a minus b over what both have.

        Args:
            same_architectures: False to compare a model without student architectures (the generator as a segmenter)
                with the mean over the students'; the seeds are common all the same.
        """
        if same_architectures:
            seeds, common = block([a, b])
            of_a = of_b = common
        else:
            seeds, of_a = block([{seed: a[seed] for seed in a if seed in b}])
            seeds, of_b = block([{seed: b[seed] for seed in seeds}])
        return arm_difference(
            self._sums(a, seeds, of_a, measure),
            self._sums(b, seeds, of_b, measure),
            self._all_groups(),
            statistic=_mean_over_slots(measure.statistic),
            resampling=self.resampling,
            batched=True,
            paired_seeds=True,
        )

    def _all_groups(self) -> np.ndarray:
        return np.concatenate([self.groups[sensor] for sensor in self.groups])

    def _sums(
        self, arm: Students[S], seeds: Sequence[int], architectures: Sequence[str], measure: Measure[S]
    ) -> np.ndarray:
        """``(seeds, images, slots, ...)``, a slot an architecture and sensor; images of other sensors add nothing."""
        rows = []
        for seed in seeds:
            slots = []
            for architecture, sensor in itertools.product(architectures, self.groups):
                own = measure.sums(arm[seed][architecture][sensor])
                if len(own) != len(self.groups[sensor]):
                    raise DataError(
                        f"{sensor}: {len(own)} scored test images of seed {seed}, expected {len(self.groups[sensor])}: "
                        "the records are of different data"
                    )
                zero = np.zeros((1, *own.shape[1:]))
                parts = [own if name == sensor else np.repeat(zero, len(g), 0) for name, g in self.groups.items()]
                slots.append(np.concatenate(parts))
            rows.append(np.stack(slots, axis=1))
        return np.stack(rows)


def block(arms: Sequence[Students]) -> tuple[list[int], list[str]]:
    """The largest set of seeds by architectures that every arm has in full; of equals that with more seeds.

    Raises:
        DataError: the arms have no student of the same seed and architecture.
    """
    pairs = set.intersection(*({(s, a) for s, of_seed in arm.items() for a in of_seed} for arm in arms))
    names = sorted({a for _, a in pairs})
    seeds = sorted({s for s, _ in pairs})
    best: tuple[list[int], list[str]] = ([], [])
    for count in range(1, len(names) + 1):
        for chosen in itertools.combinations(names, count):
            full = [seed for seed in seeds if all((seed, a) in pairs for a in chosen)]
            if len(full) * count > len(best[0]) * len(best[1]):
                best = (full, list(chosen))
    if not best[0]:
        raise DataError("no student of the same seed and architecture in every arm compared; run further cells")
    return best


def worth_labels(score: float, few: tuple[int, float], many: tuple[int, float]) -> float | None:
    """How many labels ``real`` would need for ``score``: a straight line in log labels through two arms of ``real``.

    Args:
        few, many: (labels, score) of ``real`` with few and with all labels.

    Returns:
        The number of labels, infinite beyond the last point (nothing is known there); None where more labels did not
        score higher, so that labels have no measurable worth.
    """
    if not many[1] > few[1]:
        return None
    if score > many[1]:
        return math.inf
    share = (score - few[1]) / (many[1] - few[1])
    return few[0] * (many[0] / few[0]) ** share


def _mean_over_slots(statistic: Statistic) -> Statistic:
    return lambda sums: np.asarray(statistic(sums)).mean(axis=-1)
