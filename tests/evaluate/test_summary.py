import json
from typing import Any

import numpy as np
import pytest

from dakter.errors import DataError
from dakter.evaluate.bootstrap import Resampling, holm
from dakter.evaluate.scores import score
from dakter.evaluate.summary import ScoredStudent, candidate, contrasts, summarise
from dakter.metrics import miou

NAMES = ("sea", "oil", "ship")
DRAWS = Resampling(300, 0, 0.95)
GROUPS = np.arange(24) // 2


def student(arm: str, seed: int, accuracy: float, val_miou: float) -> ScoredStudent:
    """A model that is right with a given probability; class 2 never occurs and is never called."""
    labels = np.random.default_rng(99).integers(0, 2, (24, 8, 8)).astype(np.uint8)
    rng = np.random.default_rng(seed + 10 * len(arm))
    called = np.where(rng.random(labels.shape) < accuracy, labels, 1 - labels)
    p = np.stack([np.where(called == k, 0.9, 0.05) for k in range(3)], axis=1).astype(np.float32)
    scores = score(lambda images: images, p, labels, num_classes=3, temperature=1.5, chunk=7)
    record = {
        "id": f"{arm}-seed{seed}",
        "path": f"students/{arm}-seed{seed}",
        "seed": seed,
        "architecture": "unet",
        "val_miou": val_miou,
        "history": [1, 2, 3],
    }
    return ScoredStudent(record, scores)


@pytest.fixture(scope="module")
def arms() -> dict[str, list[ScoredStudent]]:
    return {
        "real": [student("real", 0, 0.80, 0.5), student("real", 1, 0.81, 0.7)],
        "distilled": [student("distilled", 0, 0.92, 0.6), student("distilled", 1, 0.93, 0.65)],
    }


def test_tables_follow_from_the_students(arms: dict[str, list[ScoredStudent]]) -> None:
    data = summarise(arms, GROUPS, NAMES, DRAWS)
    json.dumps(data, allow_nan=False)
    real = data["arms"]["real"]
    each = [miou(s.scores.confusions.sum(0)) for s in arms["real"]]
    assert real["miou"]["mean"] == pytest.approx(np.mean(each))
    assert real["miou"]["low"] < real["miou"]["mean"] < real["miou"]["high"]
    assert [row["class"] for row in real["iou"]] == list(NAMES)
    assert real["iou"][2] == {"class": "ship", "mean": None, "low": None, "high": None}
    assert real["precision"][2]["mean"] is None
    assert real["nll"] == pytest.approx(np.mean([s["nll"] for s in real["students"]]))
    assert real["nll_interval"]["mean"] == pytest.approx(real["nll"])
    assert real["ece"][1] == pytest.approx(np.mean([s["ece"][1] for s in real["students"]]))
    assert real["students"][1]["id"] == "real-seed1"
    assert "history" not in real["students"][0]


def test_an_interval_stays_within_what_the_score_can_be() -> None:
    """Of two students one is always right, one always wrong: the spread over so few seeds would leave 0 to 1."""
    arms = {"real": [student("real", 0, 1.0, 0.5), student("real", 1, 0.0, 0.5)]}
    scores = summarise(arms, GROUPS, NAMES, DRAWS)["arms"]["real"]
    assert (scores["miou"]["low"], scores["miou"]["high"]) == (0.0, 1.0)
    assert scores["nll_interval"]["low"] == 0.0


def test_contrasts_are_distilled_minus_real(arms: dict[str, list[ScoredStudent]]) -> None:
    rows = contrasts(arms, GROUPS, NAMES, DRAWS)
    by: dict[tuple[str, Any], dict[str, Any]] = {(row["metric"], row["class"]): row for row in rows}
    assert list(by) == [
        ("miou", None),
        ("iou", "sea"),
        ("iou", "oil"),
        ("iou", "ship"),
        ("nll", None),
        ("brier", None),
    ]
    assert {row["name"] for row in rows} == {"distilled - real"}
    first = by["miou", None]
    values = {name: np.mean([miou(s.scores.confusions.sum(0)) for s in students]) for name, students in arms.items()}
    assert first["difference"] == pytest.approx(values["distilled"] - values["real"])
    assert first["low"] > 0
    assert by["nll", None]["high"] < 0  # lower is better
    assert by["iou", "ship"]["difference"] is None


def test_holm_covers_all_but_the_primary_contrast(arms: dict[str, list[ScoredStudent]]) -> None:
    rows = contrasts(arms, GROUPS, NAMES, DRAWS)
    assert [row["primary"] for row in rows] == [True, False, False, False, False, False]
    assert rows[0]["p_holm"] is None
    others = [row for row in rows if not row["primary"] and row["p_value"] is not None]
    assert len(others) == 4
    assert [row["p_holm"] for row in others] == pytest.approx(holm([row["p_value"] for row in others]))
    assert others[0]["p_holm"] > others[0]["p_value"]


def test_without_a_control_there_is_no_contrast(arms: dict[str, list[ScoredStudent]]) -> None:
    assert contrasts({"distilled": arms["distilled"]}, GROUPS, NAMES, DRAWS) == []


def test_candidate_is_the_best_on_val_whatever_its_arm_and_test_score(arms: dict[str, list[ScoredStudent]]) -> None:
    assert candidate(arms) == {"arm": "real", "id": "real-seed1", "why": "highest val mIoU"}
    joint = {"joint-model": [student("joint-model", 0, 0.99, 0.9)]}
    assert candidate({**joint, **arms})["id"] == "real-seed1", "the joint model is none of the students"
    with pytest.raises(DataError, match="no student"):
        candidate({"real": [], **joint})
