"""Figures of images beside their labels, for the tracking server: samples while training runs, predictions on val."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure


def predictions_figure(
    images: np.ndarray, labels: np.ndarray, predictions: np.ndarray, colours: Sequence[str]
) -> Figure:
    """Rows image, label, prediction; a column each val image. Stored (n, C, H, W), maps (n, H, W); ignored is grey."""
    palette = _palette(colours)
    grey = _grey(images.astype(np.float64) / np.iinfo(images.dtype).max)
    return _rows({"image": grey, "label": palette[labels], "prediction": palette[predictions]})


def samples_figure(images: np.ndarray, soft: np.ndarray, names: Sequence[str], colours: Sequence[str]) -> Figure:
    """Rows image, class map and each class's probability; a column each sample.

    Args:
        images: model scale float (n, C, H, W).
        soft: probabilities float (n, K, H, W).
    """
    rows = {"image": _grey((images + 1) / 2), "class map": _palette(colours)[soft.argmax(1)]}
    rows |= {f"p({name})": _grey(soft[:, k : k + 1]) for k, name in enumerate(names)}
    return _rows(rows)


def _palette(colours: Sequence[str]) -> np.ndarray:
    palette = np.full((256, 3), 0.5)
    palette[: len(colours)] = [to_rgb(colour) for colour in colours]
    return palette


def _grey(values_NCHW: np.ndarray) -> np.ndarray:
    return np.clip(values_NCHW[:, 0, ..., None], 0, 1).repeat(3, -1)


def _rows(rows: dict[str, np.ndarray]) -> Figure:
    count = len(next(iter(rows.values())))
    figure = Figure(figsize=(2.0 * count, 2.15 * len(rows)), layout="constrained")
    for axes, (name, row) in zip(figure.subplots(len(rows), 1), rows.items(), strict=True):
        axes.imshow(np.concatenate(list(row), axis=1), interpolation="nearest")
        axes.set_title(name)
        axes.set_axis_off()
    return figure
