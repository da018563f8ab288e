"""The gate's rules on small confusion matrices whose outcome is known."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from dakter.errors import ConfigError, DataError
from dakter.promotion import Decision, Evidence, PromotionRules, best_constant, decide

NAMES = ("sea surface", "oil spill", "ship")
RULES = PromotionRules(num_resamples=300, min_miou=0.3, max_class_drop=0.05)


def evidence(name: str, oil: float, ship: float, **more: object) -> Evidence:
    """20 images, 800 sea, about 150 oil and 50 ship pixels each; shares found, the rest called sea."""
    rng = np.random.default_rng(1)
    confusion = np.zeros((20, 3, 3), np.int64)
    confusion[:, 0, 0] = 800
    for k, share, around in ((1, oil, 150), (2, ship, 50)):
        count = rng.integers(around - 20, around + 20, 20)
        confusion[:, k, k] = np.rint(count * share)
        confusion[:, k, 0] = count - confusion[:, k, k]
    given: dict[str, object] = {"groups": np.arange(20) // 2, "class_names": NAMES, "test_digest": "t" * 64}
    return Evidence(name, confusion, **(given | more))  # type: ignore[arg-type]


def failed(decision: Decision) -> list[str]:
    return [reason.rule for reason in decision.reasons if reason.blocking and not reason.passed]


def test_a_first_champion_must_beat_the_best_constant() -> None:
    good = decide(evidence("a", 0.6, 0.5), None, RULES)
    assert good.promote
    assert failed(good) == []
    k, constant = best_constant(evidence("a", 0.6, 0.5).confusion)
    assert k == 0
    assert constant[:, :, 0].sum() == constant.sum() == evidence("a", 0.6, 0.5).confusion.sum()
    sea = decide(evidence("a", 0.0, 0.0), None, RULES.model_copy(update={"min_miou": 0.0}))
    assert failed(sea) == ["first champion beats a constant"]
    assert "'sea surface' everywhere" in sea.reasons[-1].text


def test_a_challenger_must_gain_and_no_class_may_fall() -> None:
    champion = evidence("version 1", 0.6, 0.5)
    assert decide(evidence("b", 0.8, 0.5), champion, RULES).promote
    assert failed(decide(champion, champion, RULES)) == ["gain over the champion"]  # equal is no gain
    assert failed(decide(evidence("b", 0.5, 0.4), champion, RULES)) == [
        "gain over the champion",
        "no fall of oil spill",
        "no fall of ship",
    ]
    traded = decide(evidence("b", 0.95, 0.4), champion, RULES)
    assert failed(traded) == ["no fall of ship"]
    reason = next(reason for reason in traded.reasons if reason.rule == "no fall of ship")
    assert reason.value is not None
    assert -0.13 < reason.value < -0.07
    assert "-10" in reason.text
    assert "5.0 points is refused" in reason.text
    # A gain that is there, but smaller than the margin asked for.
    assert failed(decide(evidence("b", 0.63, 0.5), champion, RULES)) == []
    margin = RULES.model_copy(update={"min_gain": 0.05})
    assert failed(decide(evidence("b", 0.63, 0.5), champion, margin)) == ["gain over the champion"]


def test_the_interval_counts_not_the_mean() -> None:
    """Better in one image of twenty, worse in none: a gain, but its lower bound is zero."""
    champion = evidence("version 1", 0.6, 0.5)
    lucky = champion.confusion.copy()
    lucky[3, 1] = [0, lucky[3, 1].sum(), 0]
    challenger = dataclasses.replace(champion, name="b", confusion=lucky)
    decision = decide(challenger, champion, RULES)
    assert failed(decision) == ["gain over the champion"]
    reason = next(reason for reason in decision.reasons if reason.rule == "gain over the champion")
    assert reason.value == 0.0


def test_floors_size_and_rollback() -> None:
    rules = RULES.model_copy(
        update={"min_miou": 0.9, "min_class_iou": {"ship": 0.6}, "max_parameters": 10, "warn_test_uses": 2}
    )
    decision = decide(evidence("a", 0.6, 0.5, num_parameters=11, rolled_back="2026-01-01", test_uses=3), None, rules)
    assert failed(decision) == ["mIoU floor", "floor of ship", "size", "not rolled back"]
    uses = next(reason for reason in decision.reasons if reason.rule == "test uses")
    assert not uses.passed
    assert not uses.blocking
    assert "used 3 times" in uses.text
    json.dumps(decision.to_json(), allow_nan=False)
    with pytest.raises(ConfigError, match="min_class_iou names 'boat'"):
        decide(evidence("a", 0.6, 0.5), None, RULES.model_copy(update={"min_class_iou": {"boat": 0.1}}))


@pytest.mark.parametrize("change", [{"test_digest": "u" * 64}, {"groups": np.arange(20)}])
def test_another_test_set_is_no_comparison(change: dict[str, object]) -> None:
    decision = decide(evidence("b", 0.9, 0.9), evidence("version 1", 0.6, 0.5, **change), RULES)
    assert failed(decision) == ["same test set"]
    assert "score the champion" in decision.reasons[-1].text


def test_an_absent_class_decides_nothing() -> None:
    def without_ship(name: str, oil: float) -> Evidence:
        whole = evidence(name, oil, 0.5)
        confusion = whole.confusion.copy()
        confusion[:, 2] = 0
        return dataclasses.replace(whole, confusion=confusion)

    decision = decide(without_ship("b", 0.8), without_ship("version 1", 0.6), RULES)
    assert decision.promote
    assert "no fall of ship" not in [reason.rule for reason in decision.reasons]
    floor = RULES.model_copy(update={"min_class_iou": {"ship": 0.1}})
    assert failed(decide(without_ship("b", 0.8), None, floor)) == ["floor of ship"]  # unknown is not enough
    json.dumps(decide(without_ship("b", 0.8), None, floor).to_json(), allow_nan=False)


def test_evidence_must_fit_together() -> None:
    with pytest.raises(DataError, match="20 groups and 2 class names"):
        evidence("a", 0.5, 0.5, class_names=("sea", "oil"))
