"""Look-alikes taken for oil at the oil recall of ``real``, of suite ``science``: what a record keeps, and the table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dakter.data.tiles import Split
from dakter.evaluate.bootstrap import holm
from dakter.evaluate.lookalikes import histograms, log_taken_share, matched_sums, recall, taken_share, threshold
from dakter.evaluate.packed import pack_array, unpack_array
from dakter.evaluate.scores import Predict, Scores
from dakter.evaluate.study import Measure, Students, Study, block
from dakter.schema import OSD
from jobs.suites._science_arms import ALL_ARMS
from jobs.suites._science_plan import Cell, Tier

OIL, LOOK_ALIKE = OSD.names[1:3]
REFERENCE = "real"
# The bar: a quarter fewer look-alikes taken for oil, or better.
MOST_RATIO = 0.75
HEADER = (
    "arm",
    "students",
    "recall of oil",
    "threshold",
    "look-alikes taken for oil",
    "ratio to `real`",
    "p (Holm)",
    "a quarter fewer",
)

# Per-image sums by sensor of a student.
_SHARE: Measure[np.ndarray] = Measure("look-alikes taken", lambda sums: sums, taken_share)
_LOG: Measure[np.ndarray] = Measure("look-alikes taken, log", lambda sums: sums, log_taken_share)
_RECALL: Measure[np.ndarray] = Measure("recall of oil", lambda sums: sums, recall)
_THRESHOLD: Measure[np.ndarray] = Measure("threshold", lambda sums: sums, threshold)


def kept(
    of_split: Predict, split: Split, rows: Mapping[str, np.ndarray], class_names: Sequence[str], chunk: int
) -> dict[str, Any]:
    """``look_alikes``: packed ``histograms`` by sensor (``rows``: its images); empty if the classes lack either.

    ``of_split``: numbers of images to probabilities.
    """
    if not {OIL, LOOK_ALIKE} <= set(class_names):
        return {}
    oil, look_alike = class_names.index(OIL), class_names.index(LOOK_ALIKE)
    found = {}
    for sensor, own in rows.items():
        counts = histograms(
            of_split,
            own,
            split.labels[own],
            num_classes=len(class_names),
            oil=oil,
            look_alike=look_alike,
            chunk=chunk,
        )
        found[sensor] = pack_array(counts.astype(np.uint32))
    return {"look_alikes": found}


def table(
    tier: Tier,
    study: Study,
    class_names: Sequence[str],
    students: Mapping[str, Students[Scores]],
    of_arms: Mapping[str, Sequence[tuple[Cell, Mapping[str, Any]]]],
) -> list[list[str]]:
    """Rows under ``HEADER``; none if the classes, the records or ``real`` lack what is needed.

    Args:
        tier, study, class_names: of the page.
        students: arm -> its students, of which those of ``real`` tell the recall to reach.
        of_arms: arm, or name of a generator as a segmenter -> its cells, each with its ``scored`` figures.
    """
    looked = _looked(tier, class_names, students.get(REFERENCE, {}), of_arms)
    if REFERENCE not in looked or math.isnan(study.estimate(looked[REFERENCE], _SHARE).mean):
        return []
    found = {
        name: study.difference(looked[name], looked[REFERENCE], _LOG)
        for name in sorted(looked, key=lambda name: name not in ALL_ARMS)  # segmenters last
        if any(set(looked[name][seed]) & set(looked[REFERENCE].get(seed, {})) for seed in looked[name])
    }
    names = [name for name in found if name != REFERENCE]
    corrected = dict(zip(names, holm([found[name].p_value for name in names]), strict=True))
    rows = []
    for name, log_ratio in found.items():
        seeds, architectures = block([looked[name], looked[REFERENCE]])
        arm = {seed: {a: looked[name][seed][a] for a in architectures} for seed in seeds}
        share = study.estimate(arm, _SHARE)
        row = [
            f"**{name}**",
            f"{len(seeds)} x {len(architectures)}",
            f"{100 * study.estimate(arm, _RECALL).mean:.1f}",
            f"{study.estimate(arm, _THRESHOLD).mean:.3f}",
            f"{100 * share.mean:.2f} ({100 * max(0.0, share.low):.2f} to {100 * share.high:.2f})",
        ]
        ratio, low, high = (math.exp(v) for v in (log_ratio.difference, log_ratio.low, log_ratio.high))
        if name == REFERENCE:
            rows.append([*row, "1", "", ""])
        else:
            bar = "met" if high <= MOST_RATIO else "not met"
            rows.append([*row, f"{ratio:.2f} ({low:.2f} to {high:.2f})", f"{corrected[name]:.4f}", bar])
    return rows


def _looked(
    tier: Tier,
    class_names: Sequence[str],
    reference: Students[Scores],
    of_arms: Mapping[str, Sequence[tuple[Cell, Mapping[str, Any]]]],
) -> dict[str, dict[int, dict[str, dict[str, np.ndarray]]]]:
    """Arm -> seed -> architecture -> sensor -> ``matched_sums`` with ``real`` of that seed and architecture.

    Arms with other labels than ``real`` are left out.
    A generator as a segmenter, which has no architecture, is matched to every one of ``real``.
    """
    looked: dict[str, dict[int, dict[str, dict[str, np.ndarray]]]] = {}
    if not {OIL, LOOK_ALIKE} <= set(class_names):
        return looked
    oil, labels = class_names.index(OIL), tier.labels_of(ALL_ARMS[REFERENCE])
    for name, cells in of_arms.items():
        for cell, scored in cells:
            packed = scored["test"].get("look_alikes")
            if packed is None or cell.labels != labels:
                continue
            of_seed = reference.get(cell.seed, {})
            for architecture in [cell.architecture[0]] if cell.architecture else list(of_seed):
                if architecture in of_seed:
                    looked.setdefault(name, {}).setdefault(cell.seed, {})[architecture] = {
                        sensor: matched_sums(unpack_array(counts), of_seed[architecture][sensor].confusions, oil)
                        for sensor, counts in packed.items()
                    }
    return looked
