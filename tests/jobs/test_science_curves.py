from __future__ import annotations

import re

import pytest

from jobs.suites._science_curves import HEADER, drawn, row


def _look(step: int, val: float, train: float) -> dict[str, float]:
    return {"step": step, "val_nll": val, "train_nll": train, "val_miou": 1 - val, "train_miou": 1 - train}


CURVES: dict[str, list[list[dict[str, float]]]] = {
    "kept": [
        [_look(10, 0.4, 0.3), _look(20, 0.5, 0.2), _look(30, 0.9, 0.1)],
        [_look(10, 0.2, 0.1), _look(20, 0.3, 0.0)],  # ended early
        [],  # not looked at
    ],
    "views": [[_look(10, 0.4, 0.3), _look(20, 0.3, 0.25)]],
    "paper": [[], []],
}


def test_panels_are_means_over_seeds_at_the_steps_that_all_have() -> None:
    drawing = str(drawn(CURVES))
    titles = re.findall(r'class="title">([^<]+)<', drawing)
    assert titles == [f"{k}: {m}" for m in ("NLL, nats", "mIoU, %") for k in ("kept, 2 seeds", "views, 1 seed")]
    assert "kept, 2 seeds, NLL, nats: val from 0.3 to 0.4, train to 0.1" in drawing
    assert "views, 1 seed, mIoU, %: val from 60 to 70, train to 75" in drawing
    axes = [re.findall(r'class="tick">([\d.]+)<', panel) for panel in drawing.split("<svg ")[2:] if "title" in panel]
    assert axes[0] == axes[1], "panels of one measure share their axis"
    assert axes[0] != axes[2]


def test_nothing_is_drawn_of_generators_that_were_not_looked_at() -> None:
    assert drawn({"paper": [[], []]}) == ""
    assert drawn({}) == ""


@pytest.mark.parametrize(("curve", "turn"), [([], ["–", "–"]), (CURVES["kept"][0], ["0.400 (10)", "0.900"])])
def test_a_row_tells_where_val_turned(curve: list[dict[str, float]], turn: list[str]) -> None:
    found = {
        "steps": 30,
        "seconds": 90.0,
        "images_per_second": 80.0,
        "loss": [[10, 1.0, 1.0], [30, 0.5, 0.25]],
        "soft_label_entropy_nats": {"last_step": 0.1},
        "curve": curve,
    }
    cells = dict(zip(HEADER, row("kept-10-seed0", found), strict=True))
    assert (cells["minutes"], cells["last label loss"], cells["entropy p(y given x)"]) == ("1.5", "0.2500", "–")
    assert [cells["val NLL lowest (step)"], cells["last"]] == turn
    assert cells["kept step"] == "30"
