"""The accept-list of a corpus: rules, then quotas, and what became of every sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dakter.errors import ConfigError, DataError
from dakter.evaluate.gates import CurateConfig, Judgement, Limit, judge
from dakter.evaluate.measures import Measured
from dakter.evaluate.quotas import thin

QUOTAS = "quotas"  # beside the rules, what takes samples out


@dataclass(frozen=True)
class Curation:
    """What became of N samples.

    Attributes:
        indices: int64 ``(N,)`` in the corpus, ascending.
        accepted: bool ``(N,)``: passed every rule and was not thinned.
        contains: bool ``(N, K)``, which classes a sample contains.
    """

    judgement: Judgement
    indices: np.ndarray
    accepted: np.ndarray
    contains: np.ndarray

    def rejected_by(self, rule: str) -> np.ndarray:
        """Positions of the samples that fail a rule, or that quotas took out."""
        fails = self.judgement.passed & ~self.accepted if rule == QUOTAS else self.judgement.fails[rule]
        return np.flatnonzero(fails)

    def to_json(self, class_names: tuple[str, ...]) -> dict[str, Any]:
        """Limits, counts, shares of samples with each class, and last the accepted indices."""
        thinned = len(self.rejected_by(QUOTAS))
        counts = {**self.judgement.counts(), QUOTAS: {"fails": thinned, "alone": thinned, "first": thinned}}
        return {
            "num_samples": len(self.indices),
            "num_accepted": int(self.accepted.sum()),
            "limits": {measure: limit.to_json() for measure, limit in self.judgement.limits.items()},
            "counts": counts,
            "share_containing": {
                name: {
                    "corpus": float(self.contains[:, k].mean()),
                    "passed": float(self.contains[self.judgement.passed, k].mean()),
                    "accepted": float(self.contains[self.accepted, k].mean()),
                }
                for k, name in enumerate(class_names)
            },
            "indices": self.indices[self.accepted].tolist(),
        }


def check_quotas(config: CurateConfig, class_names: tuple[str, ...]) -> None:
    """Raise ConfigError if a quota is for a class that there is not."""
    unknown = sorted(set(config.quotas) - set(class_names))
    if unknown:
        raise ConfigError(
            f"curate.quotas names {', '.join(unknown)}; expected some of the classes {', '.join(class_names)}"
        )


def failing_val(config: CurateConfig, val: Measured, bounds: Mapping[str, Limit]) -> dict[str, float]:
    """Share of val images that each rule would turn away, and that ``any`` would: what befalls real images.

    Duplicates are left out: val was cut from the dataset, not drawn from a model that might repeat itself.
    """
    told = judge(config.model_copy(update={"duplicates": None}), val, bounds)
    shares = {rule: float(fails.mean()) for rule, fails in told.fails.items()}
    return {**shares, "any": float((~told.passed).mean())}


def curate(
    config: CurateConfig,
    measured: Measured,
    bounds: Mapping[str, Limit],
    indices: np.ndarray,
    class_names: tuple[str, ...],
) -> Curation:
    """Judge the samples of a corpus, then thin those that passed until the quotas are met.

    Raises:
        ConfigError: quotas that cannot be met, or of unknown classes.
        DataError: fewer than ``min_samples`` are left.
    """
    check_quotas(config, class_names)
    judgement = judge(config, measured, bounds)
    accepted, contains = judgement.passed, measured.pixels >= config.contains_px
    counts = ", ".join(f"{rule} {row['first']}" for rule, row in judgement.counts().items())
    left = f"passed the rules (turned away by {counts})" if counts else "are in the corpus"
    if accepted.sum() >= config.min_samples:
        holds = {name: contains[accepted, class_names.index(name)] for name in config.quotas}
        accepted[accepted] = thin(holds, config.quotas, indices[accepted], config.seed)
        left = "are left by the quotas"
    if accepted.sum() < config.min_samples:
        raise DataError(
            f"curate: {int(accepted.sum())} of {len(indices)} samples {left}; expected at least {config.min_samples} "
            "(curate.min_samples). Loosen or switch off a rule, lower the quotas, or generate more"
        )
    return Curation(judgement, indices, accepted, contains)
