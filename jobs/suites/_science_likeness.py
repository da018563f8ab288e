"""How like real images generated ones are, as a section of the page of suite ``science``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dakter.evaluate.likeness import MEASURES, MOST_RATIO
from jobs.suites import _science_segmenters as segmenters
from jobs.suites import _science_text as text
from jobs.suites._science_arms import GENERATORS
from jobs.suites._science_plan import Cell

SOFT_LABELS = {"last_step": "last step", "readout": segmenters.NAME}

# of images that are drawn for label maps, in place of the last step
_MAPS = "those maps"
_FURTHER = "The last rows take training images for generated ones, as further real ones: what can be shown at all. "
_SEVERAL = "Rows with another number of images a set have another yardstick too: compare those of one number. "


def section(done: Sequence[Cell], records: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Lines of every generator that was measured; none without one. ``done``: the cells that have a record."""
    rows: list[list[str]] = []
    of_real: dict[str, list[str]] = {}
    for cell in done:
        if cell.kind != "images":
            continue
        figures = records[cell.name]["figures"]
        name, count = cell.name.removeprefix("images-"), str(figures["num_images"])
        for key, what in SOFT_LABELS.items():
            if found := figures["likeness"].get(key):
                drawn_for = key == "last_step" and cell.generator and GENERATORS[cell.generator].render
                label = _MAPS if drawn_for else what
                rows.append([f"{name}, {label}", count, *text.ratios(found), text.copies(figures["copies"])])
        if found := figures["likeness"].get("real"):
            real = f"further real images, seed {cell.seed}"
            of_real[real] = [real, count, *text.ratios(found), "–"]
    rows += of_real.values()
    measures = (name.replace("_", " ") for name in MEASURES)
    head = ["generator", "images a set", *measures, f"within {MOST_RATIO:g}", "copies"]
    note = (
        "Distance of generated images from val images over that of training images from them, in sets of equal "
        "numbers, with the upper 90 % bound over images in brackets; bold: the bound is above "
        f"{MOST_RATIO:g}. Label maps are the argmax of the soft label named. {_FURTHER if of_real else ''}"
        f"{_SEVERAL if len({row[1] for row in rows}) > 1 else ''}Copies: share of generated images nearer to an image "
        "learned from than 99 % of val images are, with a 90 % interval; bold: more than 1 %."
    )
    return ["## Images", "", note, "", *text.table(head, rows)] if rows else []
