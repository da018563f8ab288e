"""Scores away from the borders of masks, of suite ``science``: what a record keeps, and the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dakter.data.tiles import Split
from dakter.evaluate.bootstrap import mean_iou
from dakter.evaluate.borders import WIDTHS, confusions_off_borders, share_of_errors, share_of_pixels
from dakter.evaluate.packed import pack_array, unpack_array
from dakter.evaluate.scores import Predict
from dakter.evaluate.study import Measure, Study, block
from jobs.suites._science_plan import Cell

# The band of which errors are counted: 2 pixels of a tile of 64, 8 of the 256 of the image that it was made of.
BAND = 2
NOTE = (
    "In per cent, means and 95 % intervals as above: mIoU of all pixels, and of those further than so many pixels of a "
    "tile from the nearest one of another class in the mask; then the share of the wrong pixels, and of all, that lie "
    f"within {BAND} of one."
)
HEADER = (
    "arm",
    "students",
    *("mIoU" if not width else f"further than {width} px from a border" for width in WIDTHS),
    f"errors within {BAND} px",
    f"pixels within {BAND} px",
)


def kept(
    of_split: Predict, split: Split, rows: Mapping[str, np.ndarray], num_classes: int, chunk: int
) -> dict[str, Any]:
    """``borders``: packed confusions by sensor (``rows``: its images); ``of_split``: image numbers to probabilities."""
    found = {
        sensor: confusions_off_borders(of_split, own, split.labels[own], num_classes=num_classes, chunk=chunk)
        for sensor, own in rows.items()
    }
    return {"borders": {sensor: pack_array(counts.astype(np.uint32)) for sensor, counts in found.items()}}


def table(study: Study, of_arms: Mapping[str, Sequence[tuple[Cell, Mapping[str, Any]]]]) -> list[list[str]]:
    """Rows under ``HEADER``, of the arms whose records have what is needed.

    Args:
        study: of the page.
        of_arms: arm, or name of a generator as a segmenter -> its cells, each with its ``scored`` figures.
    """
    rows = []
    for name, cells in of_arms.items():
        arm: dict[int, dict[str, dict[str, np.ndarray]]] = {}
        for cell, scored in cells:
            if packed := scored["test"].get("borders"):
                architecture = cell.architecture[0] if cell.architecture else "segmenter"
                sums = {sensor: unpack_array(counts).astype(np.int64) for sensor, counts in packed.items()}
                arm.setdefault(cell.seed, {})[architecture] = sums
        if not arm:
            continue
        seeds, architectures = block([arm])
        estimates = [study.estimate(arm, measure) for measure in _MEASURES]
        told = [f"{100 * e.mean:.1f} ({100 * e.low:.1f} to {100 * min(e.high, 1.0):.1f})" for e in estimates]
        rows.append([f"**{name}**", f"{len(seeds)} x {len(architectures)}", *told])
    return rows


def _off(place: int) -> Measure[np.ndarray]:
    return Measure(f"miou off {WIDTHS[place]}", lambda sums: sums[:, place], mean_iou)


_MEASURES = (
    *(_off(place) for place in range(len(WIDTHS))),
    Measure[np.ndarray]("errors", lambda sums: sums, lambda sums: share_of_errors(sums, BAND)),
    Measure[np.ndarray]("pixels", lambda sums: sums, lambda sums: share_of_pixels(sums, BAND)),
)
