"""Which generated samples are kept: those that real images of train and val would not tell from themselves.

Every rule takes its limits from real images alone, as quantiles of the very measure that it puts to the generated ones,
so a rule at 0.005 turns away about as many real images at each end. Limits are themselves measures of real images: with
few of them they are the least and the greatest. Test is never read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import field_validator

from dakter.config import Config, setting
from dakter.evaluate.copies import first_alike
from dakter.evaluate.measures import TEXTURE, AgreementBy, Measured, rule_of

# In the order in which they are asked; duplicates are looked for among what passed the others.
RULES = (*TEXTURE, "copies", "agreement", "duplicates")
# Rules with one limit: no spectrum is too near the mean, no sample too new, no labels agree too well.
_ONLY_HIGH, _ONLY_LOW = {"spectrum", "copies", "duplicates"}, {"agreement"}


def _tail(default: float | None, what: str) -> Any:
    return setting(default, f"{what}: share of real images beyond each limit; null: no such rule", ge=0, lt=0.5)


class CurateConfig(Config):
    """Rules, each with the share of real images that lies beyond each of its limits, and quotas."""

    mean: float | None = _tail(0.005, "mean amplitude")
    spread: float | None = _tail(0.005, "standard deviation of the amplitude")
    looks: float | None = _tail(0.005, "equivalent number of looks of homogeneous background, median of the image")
    spectrum: float | None = _tail(0.005, "distance of the power spectrum from the mean of train, in dB")
    damping: float | None = _tail(0.005, "how much darker each class is than what surrounds it, in dB")
    shares: float | None = _tail(0.005, "share of each class in the image")
    copies: float | None = _tail(0.005, "correlation with the nearest training image, by that of val images")
    agreement: float | None = _tail(
        None,
        "agreement of the stored label with p(y | x) of paths.model, by that of val labels (a stored label of "
        "soft_label.mode readout is p(y | x) already, one of render.label map is not)",
    )
    duplicates: float | None = _tail(
        0.005, "correlation with an earlier sample, by that of val with train, with allowance for the corpus's size"
    )
    agreement_by: AgreementBy = setting(
        "miou", "miou: mean over the classes of the stored label; pixels: share of them"
    )
    evaluations: int = setting(8, "evaluations of p(y | x) averaged for agreement", ge=1)
    quotas: dict[str, float] = setting(
        {}, "class: least share of accepted samples that contain it, e.g. {oil spill: 0.5}; others are thinned"
    )
    contains_px: int = setting(4, "pixels of a class from which on a sample contains it", unit="px", ge=1)
    min_samples: int = setting(1, "samples that must be left, else nothing is written", ge=1)
    seed: int = setting(0, "seed of p(y | x), and of which samples quotas take out")
    pictures: int = setting(6, "samples that the page shows of each rule", ge=1)
    threads: int = setting(2, "shards measured at a time; changes memory, never a measure", ge=1)

    @field_validator("quotas")
    @classmethod
    def _shares(cls, quotas: dict[str, float]) -> dict[str, float]:
        if not all(0 < share <= 1 for share in quotas.values()):
            raise ValueError("shares above 0, up to 1")
        return quotas

    @property
    def rules(self) -> tuple[str, ...]:
        """Those that are on, in order."""
        return tuple(rule for rule in RULES if getattr(self, rule) is not None)

    def decisive(self) -> dict[str, Any]:
        """The settings that decide which samples are accepted."""
        return {key: value for key, value in self.dump().items() if key not in ("pictures", "threads")}


@dataclass(frozen=True)
class Limit:
    """What a measure may be; None: that end is open. ``num_real`` real images told it, none of them: both are open."""

    low: float | None
    high: float | None
    num_real: int

    def to_json(self) -> dict[str, Any]:
        return {"low": self.low, "high": self.high, "num_real": self.num_real}

    def broken_by(self, values: np.ndarray) -> np.ndarray:
        """Where ``values`` lie beyond, bool; NaN never does."""
        low, high = (-np.inf if self.low is None else self.low), (np.inf if self.high is None else self.high)
        return (values < low) | (values > high)


def limits(
    config: CurateConfig,
    train: Mapping[str, np.ndarray],
    val: Mapping[str, np.ndarray],
    *,
    num_train: int,
    num_samples: int,
) -> dict[str, Limit]:
    """The limit of every measure whose rule is on.

    Args:
        train: measures of the training images, texture alone.
        val: all measures of the val images.
        num_train: training images.
        num_samples: of the corpus. A sample has so many others to resemble by chance where a val image had the training
            images, so of duplicates the share beyond the limit is lowered in proportion.
    """
    found = {}
    for measure, values in val.items():
        rule = rule_of(measure)
        real = np.concatenate([train[measure], values]) if measure in train else values
        tail = getattr(config, rule)
        if tail is not None:
            found[measure] = _limit(rule, real, tail)
    if config.duplicates is not None:
        tail = config.duplicates * min(1.0, num_train / max(1, num_samples - 1))
        found["duplicates/"] = _limit("duplicates", val["copies/"], tail)
    return found


def _limit(rule: str, real: np.ndarray, tail: float) -> Limit:
    told = real[np.isfinite(real)]
    if not told.size:
        return Limit(None, None, 0)
    low = None if rule in _ONLY_HIGH else float(np.quantile(told, tail, method="lower"))
    high = None if rule in _ONLY_LOW else float(np.quantile(told, 1 - tail, method="higher"))
    return Limit(low, high, int(told.size))


@dataclass(frozen=True)
class Judgement:
    """What the rules say of N samples.

    Attributes:
        fails: rule -> bool ``(N,)``; a sample may fail several.
        repeats: int64 ``(N,)``, the earlier sample that a duplicate repeats, else -1.
    """

    measured: Measured
    limits: Mapping[str, Limit]
    fails: dict[str, np.ndarray]
    repeats: np.ndarray

    @property
    def passed(self) -> np.ndarray:
        """Samples that no rule turns away, bool ``(N,)``."""
        return ~np.any([np.zeros(len(self.measured), bool), *self.fails.values()], axis=0)

    def counts(self) -> dict[str, dict[str, int]]:
        """For each rule: how many fail it, how many it alone, and how many it first: these add up to all rejected."""
        before = np.zeros(len(self.measured), bool)
        times = np.sum([np.zeros(len(before), int), *self.fails.values()], axis=0)
        found = {}
        for rule, fails in self.fails.items():
            found[rule] = {
                "fails": int(fails.sum()),
                "alone": int((fails & (times == 1)).sum()),
                "first": int((fails & ~before).sum()),
            }
            before = before | fails
        return found

    def why(self, rule: str, sample: int) -> str:
        """In which measures a sample fails a rule, in words."""
        if rule == "duplicates":
            return f"repeats an earlier sample: correlation above {self.limits['duplicates/'].high:.3g}"
        told = []
        for measure, values in self.measured.values.items():
            limit = self.limits[measure] if rule_of(measure) == rule else None
            if limit is None or not limit.broken_by(values[sample : sample + 1])[0]:
                continue
            low = limit.low is not None and values[sample] < limit.low
            bound, word = (limit.low, "below") if low else (limit.high, "above")
            told.append(f"{measure.replace('/', ' ').strip()} {values[sample]:.3g}, {word} {bound:.3g}")
        return "; ".join(told)


def judge(config: CurateConfig, measured: Measured, bounds: Mapping[str, Limit]) -> Judgement:
    """Put every rule to every sample; ``bounds`` as ``limits`` makes them."""
    fails = {rule: np.zeros(len(measured), bool) for rule in config.rules}
    for measure, values in measured.values.items():
        if rule_of(measure) in fails:
            fails[rule_of(measure)] |= bounds[measure].broken_by(values)
    repeats = np.full(len(measured), -1, np.int64)
    if "duplicates" in fails:
        left = np.flatnonzero(~np.any(list(fails.values()), axis=0))
        high = bounds["duplicates/"].high
        found = first_alike(measured.small[left], 1.0 if high is None else high)
        repeats[left] = np.where(found >= 0, left[found], -1) if left.size else found
        fails["duplicates"] = repeats >= 0
    return Judgement(measured, bounds, fails, repeats)
