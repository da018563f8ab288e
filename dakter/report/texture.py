"""Speckle of generated against real tiles, as the report shows it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dakter.evaluate.speckle import Texture, histogram_distance, spectrum_distance_db, to_gray
from dakter.schema import ClassTable


def compare_speckle(
    real: tuple[np.ndarray, np.ndarray], generated: tuple[np.ndarray, np.ndarray], classes: ClassTable
) -> dict[str, Any]:
    """``ReportInputs.speckle`` from images and class maps.

    Args:
        real, generated: stored images (N, C, H, W) uint8 or uint16, of one tile size, and class maps (N, H, W) uint8
            (of generated pairs: the argmax of the soft label). Only the first band counts.
        classes: class 0 is the background that looks are taken from and damping is against.

    Returns:
        ``statistics``, ``histogram`` and ``spectrum``; null where a set holds too little of a class to tell.
    """
    a, b = (Texture.of(to_gray(images), labels, len(classes)) for images, labels in (real, generated))
    rows = [_row(f"Apparent looks, {classes.names[0]}", "", a.looks, b.looks)]
    rows += [
        _row(f"Damping, {name}", "dB", float(a.damping_db[k]), float(b.damping_db[k]))
        for k, name in enumerate(classes.names[1:])
    ]
    rows += [
        _row("Histogram distance to real", "gray", 0.0, histogram_distance(a.histogram, b.histogram)),
        _row("Spectrum distance to real", "dB", 0.0, spectrum_distance_db(a.spectrum, b.spectrum)),
    ]
    bins, rings = len(a.histogram), len(a.spectrum)
    return {
        "statistics": rows,
        "histogram": {
            "x": ((np.arange(bins) + 0.5) / bins).tolist(),
            "real": a.histogram.tolist(),
            "generated": b.histogram.tolist(),
        },
        "spectrum": {
            "x": ((np.arange(rings) + 0.5) / (2 * rings)).tolist(),
            "real": a.spectrum.tolist(),
            "generated": b.spectrum.tolist(),
        },
    }


def _row(name: str, unit: str, real: float, generated: float) -> dict[str, Any]:
    values = {"real": real, "generated": generated}
    return {"name": name, "unit": unit, **{k: v if math.isfinite(v) else None for k, v in values.items()}}
