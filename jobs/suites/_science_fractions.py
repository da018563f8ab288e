"""Soft labels against the true class fractions of simulated scenes, of suite ``science``: figures and the table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dakter.data.tiles import Split
from dakter.evaluate.fractions import against_fractions, fraction_sums, means
from dakter.evaluate.scores import Predict

# What is scored, and how the page calls it.
_WHAT = {
    "readout": "p(y given x)",
    "chains": "chains",
    "hard_masks": "hard masks",
    "fractions": "the fractions",
}
_SCORES = {"cross_entropy": "cross-entropy", "brier": "Brier"}
HEADER = ("generator", *(f"{what}: {score}" for what in _WHAT.values() for score in _SCORES.values()))


def measured(labellers: Mapping[str, Predict], val: Split, chunk: int) -> dict[str, Any] | None:
    """Proper scores of soft labels on val images against their true fractions; None where those are not known.

    Args:
        labellers: what to score: name -> stored images to soft labels.
        val: a split of simulated scenes.
        chunk: images at a time.

    Returns:
        name -> ``{"cross_entropy", "brier"}`` a pixel, and under ``hard_masks`` those of the labels that a generator
        learns from, under ``fractions`` those of the truth itself: the least there can be.
    """
    fractions = val.fractions
    if fractions is None:
        return None
    classes = np.arange(fractions.shape[1])[:, None, None]
    masks = (classes == val.labels[:, None]).astype(np.float32)
    truths = {"hard_masks": masks, "fractions": fractions}
    return {
        **{
            name: against_fractions(predict, val.images, val.labels, fractions, chunk=chunk)
            for name, predict in labellers.items()
        },
        **{name: means(fraction_sums(p, fractions, val.labels).sum(axis=0)) for name, p in truths.items()},
    }


def row(name: str, found: Mapping[str, Any]) -> list[str]:
    """A row under ``HEADER``."""
    values = [found[what][score] for what in _WHAT for score in _SCORES]
    return [name, *("–" if value is None else f"{value:.4f}" for value in values)]
