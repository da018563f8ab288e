"""Whether a candidate becomes the champion: stated rules on evidence, no side effects, reasons in plain words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from dakter.config import Config, setting
from dakter.errors import ConfigError, DataError
from dakter.evaluate.bootstrap import Interval, mean_iou, paired_difference
from dakter.metrics import iou, miou

# who stands for promotion
CandidateChoice = Literal["student", "joint-model", "best"]


class PromotionRules(Config):
    """Who stands as the candidate, chosen on val alone, and what it must show. IoU is a share, 0 to 1; a point is 0.01.

    The rules are the same for whoever stands. The joint model must be asked for: at many times a student's weights and
    network evaluations it costs its users something that no score shows.
    """

    candidate: CandidateChoice = setting(
        "student",
        "student: the one of highest mIoU on val; joint-model: the joint model's own p(y | x); best: whichever of the "
        "two has the higher mIoU on val, the student if they are equal (it is the best of several on val and has an "
        "advantage there)",
    )
    min_miou: float = setting(0.25, "floor of the candidate's mIoU on test", unit="IoU", ge=0, le=1)
    min_class_iou: dict[str, float] = setting(
        {}, "floors by class name, e.g. {oil spill: 0.4}; classes left out have none", unit="IoU"
    )
    min_gain: float = setting(
        0.0, "the lower bound of the paired interval of the mIoU gain over the champion must lie above", unit="IoU"
    )
    max_class_drop: float = setting(
        0.03, "most that the IoU of any class may fall below the champion's", unit="IoU", ge=0, le=1
    )
    first_min_gain: float = setting(
        0.0,
        "a first champion: the lower bound of the paired interval of its mIoU gain over the best constant prediction "
        "must lie above",
        unit="IoU",
    )
    max_parameters: int | None = setting(None, "most weights the candidate may have; null: no limit", ge=1)
    warn_test_uses: int = setting(20, "more uses of the same test set than this are remarked upon", ge=1)
    num_resamples: int = setting(2000, "draws of the paired bootstrap", ge=100)
    level: float = setting(0.95, "coverage of the interval", gt=0, lt=1)
    seed: int = setting(0, "seed of the bootstrap")


@dataclass(frozen=True)
class Evidence:
    """One model's showing on a frozen test set.

    Attributes:
        name: for people, e.g. ``"version 3"``.
        confusion: pixels an image, integer (N, K, K), rows true class, columns predicted.
        groups: near-duplicate group of each image, integer (N,).
        class_names: the K classes.
        test_digest: of the test set.
        test_uses: how often that test set was used so far.
        num_parameters: weights of the network; None if unknown.
        rolled_back: when this model was rolled back, if it was.
        scalars: further scores, kept with the decision.
        provenance: digests of what it was made from, kept with the decision.
    """

    name: str
    confusion: np.ndarray
    groups: np.ndarray
    class_names: tuple[str, ...]
    test_digest: str
    test_uses: int = 0
    num_parameters: int | None = None
    rolled_back: str | None = None
    scalars: Mapping[str, float | None] = field(default_factory=dict)
    provenance: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape, k = self.confusion.shape, len(self.class_names)
        if len(shape) != 3 or shape[1:] != (k, k) or shape[0] != len(self.groups) or not shape[0]:
            raise DataError(
                f"{self.name}: confusion {shape}, {len(self.groups)} groups and {k} class names; expected (N, {k}, "
                f"{k}) with N >= 1 groups; evaluate it again"
            )


@dataclass(frozen=True)
class Reason:
    """One rule applied.

    Attributes:
        rule: its name.
        passed: whether it held.
        value, bound: what was found and what it was held against; None where there is no number.
        text: for whoever approves.
        blocking: whether failing it keeps the candidate from promotion; a remark does not.
    """

    rule: str
    passed: bool
    value: float | None
    bound: float | None
    text: str
    blocking: bool = True


@dataclass(frozen=True)
class Decision:
    """``promote`` holds if every blocking reason passed."""

    reasons: tuple[Reason, ...]

    @property
    def promote(self) -> bool:
        return all(reason.passed for reason in self.reasons if reason.blocking)

    def to_json(self) -> list[dict[str, Any]]:
        return [asdict(reason) for reason in self.reasons]


def decide(candidate: Evidence, champion: Evidence | None, rules: PromotionRules) -> Decision:
    """Apply every rule, so that an approver sees all that speaks for and against.

    Args:
        champion: on the same test images in the same order; None if there is none yet.

    Raises:
        ConfigError: a floor names an unknown class.
    """
    reasons = [*_standing_alone(candidate, rules)]
    if champion is None:
        reasons.append(_against_constant(candidate, rules))
    else:
        reasons += _against_champion(candidate, champion, rules)
    return Decision(tuple(reasons))


def best_constant(confusion: np.ndarray) -> tuple[int, np.ndarray]:
    """The class that, predicted everywhere, scores the highest mIoU, and the confusion (N, K, K) of doing so."""
    true = confusion.sum(axis=2)
    options = []
    for k in range(confusion.shape[1]):
        constant = np.zeros_like(confusion)
        constant[:, :, k] = true
        options.append(constant)
    best = int(np.nanargmax([miou(option.sum(axis=0)) for option in options]))
    return best, options[best]


def _standing_alone(candidate: Evidence, rules: PromotionRules) -> Iterator[Reason]:
    total = candidate.confusion.sum(axis=0)
    score, by_class = miou(total), iou(total)
    yield _floor("mIoU floor", "mIoU", score, rules.min_miou)
    for name, floor in rules.min_class_iou.items():
        if name not in candidate.class_names:
            raise ConfigError(
                f"promotion.min_class_iou names {name!r}; expected one of {', '.join(candidate.class_names)}"
            )
        value = float(by_class[candidate.class_names.index(name)])
        yield _floor(f"floor of {name}", f"IoU of {name}", value, floor)
    if rules.max_parameters is not None:
        count = candidate.num_parameters
        known = "an unknown number of weights" if count is None else f"{count:,} weights"
        passed = count is not None and count <= rules.max_parameters
        limit = float(rules.max_parameters)
        yield Reason("size", passed, _number(count), limit, f"It has {known}; at most {limit:,.0f} are allowed.")
    if candidate.rolled_back is not None:
        text = (
            f"It was champion and was rolled back on {candidate.rolled_back}; to allow it again, remove the tag "
            "dakter.rolled_back from its version."
        )
        yield Reason("not rolled back", False, None, None, text)
    uses, most = candidate.test_uses, rules.warn_test_uses
    text = f"This test set has been used {uses} times; " + (
        f"up to {most} is unremarkable."
        if uses <= most
        else f"after more than {most} its scores flatter whatever was chosen by them: plan a fresh test set."
    )
    yield Reason("test uses", uses <= most, float(uses), float(most), text, blocking=False)


def _against_constant(candidate: Evidence, rules: PromotionRules) -> Reason:
    k, constant = best_constant(candidate.confusion)
    interval = _gain(candidate.confusion, constant, candidate.groups, rules)
    rival = f"the best constant prediction ({candidate.class_names[k]!r} everywhere)"
    return _beats("first champion beats a constant", rival, interval, rules.first_min_gain)


def _against_champion(candidate: Evidence, champion: Evidence, rules: PromotionRules) -> list[Reason]:
    same = (
        candidate.test_digest == champion.test_digest
        and candidate.class_names == champion.class_names
        and np.array_equal(candidate.groups, champion.groups)
        and np.array_equal(candidate.confusion.sum(axis=2), champion.confusion.sum(axis=2))
    )
    text = (
        f"Candidate and champion ({champion.name}) were scored on the same test images and classes."
        if same
        else f"Candidate and champion ({champion.name}) were scored on other test images or classes "
        f"({candidate.test_digest[:12]} and {champion.test_digest[:12]}): they cannot be compared; score the champion "
        "on this test set."
    )
    reasons = [Reason("same test set", same, None, None, text)]
    if not same:
        return reasons
    interval = _gain(candidate.confusion, champion.confusion, candidate.groups, rules)
    reasons.append(_beats("gain over the champion", f"the champion ({champion.name})", interval, rules.min_gain))
    change = iou(candidate.confusion.sum(axis=0)) - iou(champion.confusion.sum(axis=0))
    for name, value in zip(candidate.class_names, change.tolist(), strict=True):
        if math.isnan(value):
            continue  # the class does not occur in this test set, so nothing can be said about it
        bound = -rules.max_class_drop
        reasons.append(
            Reason(
                f"no fall of {name}",
                value >= bound,
                value,
                bound,
                f"IoU of {name} changes by {_points(value)} against the champion; a fall of more than "
                f"{100 * rules.max_class_drop:.1f} points is refused.",
            )
        )
    return reasons


def _gain(a: np.ndarray, b: np.ndarray, groups: np.ndarray, rules: PromotionRules) -> Interval:
    return paired_difference(
        a,
        b,
        groups,
        statistic=mean_iou,
        num_resamples=rules.num_resamples,
        seed=rules.seed,
        level=rules.level,
        batched=True,
    )


def _beats(rule: str, rival: str, interval: Interval, margin: float) -> Reason:
    passed = interval.low > margin  # false for NaN: what cannot be computed proves nothing
    text = (
        f"mIoU differs from {rival} by {_points(interval.difference)}, {100 * interval.level:g} % interval "
        f"{_points(interval.low)} to {_points(interval.high)}; its lower bound must lie above {_points(margin)}."
    )
    return Reason(rule, passed, _number(interval.low), margin, text)


def _floor(rule: str, what: str, value: float, floor: float) -> Reason:
    found = "not known (no such pixel in the test set)" if math.isnan(value) else f"{100 * value:.1f} %"
    text = f"{what} is {found}; at least {100 * floor:.1f} % is required."
    return Reason(rule, value >= floor, _number(value), floor, text)


def _points(value: float) -> str:
    return "unknown" if math.isnan(value) else f"{100 * value:+.1f} points"


def _number(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else float(value)
