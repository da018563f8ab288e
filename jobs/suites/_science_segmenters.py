"""Generators as segmenters on the page of suite ``science``: what p(y|x) gains, and what students keep of it."""

from __future__ import annotations

from collections.abc import Mapping

from dakter.evaluate.bootstrap import Interval
from dakter.evaluate.scores import Scores
from dakter.evaluate.study import MIOU, Students, Study
from jobs.suites import _science_text as text

NAME = "p(y given x)"
_POOLED = " with the real teacher"


def named(generator: str) -> str:
    """Name of a generator's p(y|x) among the arms of a page."""
    return f"{NAME} of {generator}"


def named_pool(generator: str) -> str:
    """Name of a generator's p(y|x) pooled with the probabilities of the real teacher."""
    return named(generator) + _POOLED


def described(name: str) -> str:
    """What a segmenter is, in words."""
    if name.endswith(_POOLED):
        return "both together as a segmenter, weights fitted on val"
    return "the generator itself as a segmenter"


def gains(study: Study, students: Mapping[str, Students[Scores]]) -> dict[str, Interval]:
    """mIoU of every generator's p(y|x) above ``real``, the mean over its architectures, by ``named``."""
    real = students.get("real", {})
    return {
        name: study.difference(arm, real, MIOU, same_architectures=False)
        for name, arm in students.items()
        if name.startswith(NAME) and set(arm) & set(real)
    }


def kept(study: Study, students: Mapping[str, Students[Scores]], segmenter: str) -> list[str]:
    """What students of ours keep of their generator's gain over ``real``, by means over the seeds of all three.

    One line for students with the weights of the best val mIoU and one for those of the last step; none without a gain.
    """
    ours = segmenter.removeprefix(named("")).replace("unlabelled", "ours")
    real, generator = students["real"], students[segmenter]
    lines = []
    for name in (ours, f"{ours}-last"):
        own = students.get(name, {})
        seeds = set(own) & set(real) & set(generator)
        if not seeds:
            continue
        cut = [{seed: arm[seed] for seed in seeds} for arm in (own, generator)]
        part, whole = (study.difference(arm, real, MIOU, same_architectures=False).difference for arm in cut)
        if whole > 0:
            told = f"{100 * part / whole:.0f} % of it: {100 * part:+.1f} of {100 * whole:+.1f}, {text.counted(seeds)}"
            lines.append(f"  Students of `{name}` keep {told}.")
    return lines
