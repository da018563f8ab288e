"""What the numbers allow to be said, in words: a gain is claimed only where its whole interval lies above zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from dakter.evaluate.summary import JOINT_MODEL
from dakter.report.inputs import CONTROL, DISTILLED, ReportInputs

Outcome = Literal["gain", "loss", "not shown", "not evaluated"]


@dataclass(frozen=True)
class Verdict:
    """``outcome`` of the primary contrast, the headline sentence, and one sentence on what was decided."""

    outcome: Outcome
    headline: str
    decision: str
    candidate: str


def percent(share: float | None) -> str:
    """A share as percent with one digit: ``64.9``; an en dash if unknown."""
    return "–" if share is None else f"{100 * share:.1f}"


def signed(value: float | None, digits: int = 1) -> str:
    """``+3.7`` or ``−1.4``, with a true minus sign; what rounds to zero has no sign; an en dash if unknown."""
    if value is None:
        return "–"
    text = f"{value:+.{digits}f}".replace("-", "−")
    return text[1:] if float(f"{value:.{digits}f}") == 0 else text


def points(share: float | None, digits: int = 1) -> str:
    """A difference of shares in percentage points."""
    return signed(None if share is None else 100 * share, digits)


def level(contrast: Mapping[str, Any]) -> str:
    return f"{100 * float(contrast.get('level', 0.95)):g}\u202f%"


def direction(contrast: Mapping[str, Any]) -> Literal["higher", "lower", "not shown"]:
    """Where the whole interval lies; an end at zero counts as zero inside."""
    low, high = contrast["low"], contrast["high"]
    if low is None or high is None:
        return "not shown"
    return "higher" if low > 0 else "lower" if high < 0 else "not shown"


def verdict(inputs: ReportInputs) -> Verdict:
    """The outcome of a run in words, with its numbers."""
    return Verdict(*_headline(inputs), _decision(inputs), _candidate(inputs))


def _headline(inputs: ReportInputs) -> tuple[Outcome, str]:
    contrast = inputs.primary_contrast()
    if contrast is None:
        return "not evaluated", "No outcome yet: the students of this run have not been evaluated on the test set."
    arms = inputs.evaluation["arms"]
    control, distilled = (percent(arms[arm]["miou"]["mean"]) for arm in (CONTROL, DISTILLED))
    gained, beside = points(contrast["difference"]), inputs.beside()
    if contrast["low"] is None or contrast["high"] is None:
        return "not shown", (
            f"A gain is not shown: test mIoU is {distilled}\u202f% with {beside} and {control}\u202f% without, "
            "and the interval of the difference is undefined on this test set."
        )
    interval = f"{points(contrast['low'])} to {points(contrast['high'])}"
    side = direction(contrast)
    if side == "not shown":
        return "not shown", (
            f"A gain is not shown: test mIoU is {distilled}\u202f% with {beside} and {control}\u202f% without; "
            f"the difference of {gained} points has a {level(contrast)} interval of {interval}, which includes zero."
        )
    return "gain" if side == "higher" else "loss", (
        f"In this run test mIoU is {distilled}\u202f% with {beside} and {control}\u202f% without: {gained} "
        f"points ({level(contrast)} interval {interval})."
    )


def candidate_of(inputs: ReportInputs) -> dict[str, Any] | None:
    """Arm, id and why of who stood for promotion: the joint model if the decision was on it, else the best student."""
    if inputs.decision.get("candidate", {}).get("arm") == JOINT_MODEL:
        return {"arm": JOINT_MODEL, "id": JOINT_MODEL, "why": "promotion.candidate"}
    found: dict[str, Any] | None = inputs.evaluation.get("candidate")
    return found


def _candidate(inputs: ReportInputs) -> str:
    candidate = candidate_of(inputs)
    if not candidate:
        return "No candidate has been chosen."
    if candidate["arm"] == JOINT_MODEL:
        return "The candidate is the joint model as a segmenter, by its own p(y given x), and no student."
    if candidate["arm"] == CONTROL:
        return (
            f"The best candidate is the real-only control ({candidate['id']}; {candidate['why']}): no generated pair "
            "went into it."
        )
    return f"The candidate is {candidate['id']}, trained on real and {inputs.beside()} ({candidate['why']})."


def _decision(inputs: ReportInputs) -> str:
    decision = inputs.decision
    if not decision:
        return "Nothing has been decided: the promotion stage left no record."
    champion = decision.get("champion")
    name = f"{decision.get('model_name', 'the model')}, version {decision.get('version', '–')}"
    rules = [reason for reason in decision.get("reasons", ()) if reason.get("blocking", True)]
    failed = [reason for reason in rules if not reason["passed"]]
    if decision["promoted"]:
        before = "It takes the place of the former champion." if champion else "There was no champion before it."
        return f"The gate said yes: {name}, is the new champion. {before}"
    unmet = f" {len(failed)} of {len(rules)} rules not met: {_names(failed)}." if failed else ""
    stays = "The champion stays as it was." if champion else "There is no champion."
    return f"The gate said no: {name}, stays a challenger.{unmet} {stays}"


def _names(reasons: list[Mapping[str, Any]]) -> str:
    return ", ".join(str(reason["rule"]).replace("_", " ") for reason in reasons)
