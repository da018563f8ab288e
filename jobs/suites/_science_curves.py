"""Generators on the page of suite ``science``: what training was, and how p(y given x) fares as steps add up."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from dakter.report import figures
from dakter.report.svg import side_by_side

HEADER = (
    "generator",
    "steps",
    "minutes",
    "images/s",
    "last image loss",
    "last label loss",
    "entropy last step",
    "entropy p(y given x)",
    "val NLL lowest (step)",
    "last",
    "kept step",
)
NOTE = (
    "Entropy of generated labels, and NLL of p(y given x) on val while training ran, in nats a pixel: where the last "
    "is well above the lowest, the generator has begun to memorise its labels. Minutes and images a second are of as "
    "many cells at a time as the run had workers."
)
CURVES_NOTE = (
    "p(y given x) of the averaged weights while generators train, means over seeds (other ones in each panel where "
    "their numbers differ), at the steps that all of them reached: where val (line) has stopped improving and training "
    "images (dashes) go on, more steps of the same schedule bought nothing."
)
_MEASURES = (("nll", "NLL, nats", 1.0), ("miou", "mIoU, %", 100.0))


def row(name: str, found: Mapping[str, Any]) -> list[str]:
    """One generator's row of the table, under HEADER; ``found``: the figures of its record."""
    entropy, last = found["soft_label_entropy_nats"], found["loss"][-1]
    return [
        name,
        str(found["steps"]),
        f"{found['seconds'] / 60:.1f}",
        f"{found['images_per_second']:.1f}",
        *(f"{value:.4f}" for value in last[1:]),
        f"{entropy['last_step']:.3f}",
        f"{entropy['readout']:.3f}" if "readout" in entropy else "–",
        *_turn(found["curve"]),
        str(found.get("kept_step", found["steps"])),
    ]


def drawn(curves: Mapping[str, Sequence[Sequence[Mapping[str, float]]]]) -> Markup:
    """A panel a kind of generator and measure; empty where none was looked at.

    Args:
        curves: kind -> a curve a seed, see ``Validation.curve``.
    """
    looked = {kind: [curve for curve in several if curve] for kind, several in curves.items()}
    means = {f"{kind}, {_seeds(len(several))}": _mean(several) for kind, several in looked.items() if several}
    if not means:
        return Markup("")
    rows, words = [], []
    for key, title, factor in _MEASURES:
        span = [step[f"{split}_{key}"] for mean in means.values() for step in mean for split in ("val", "train")]
        rows.append([_panel(f"{kind}: {title}", mean, key, factor, span) for kind, mean in means.items()])
        words += [
            f"{kind}, {title}: val from {factor * mean[0][f'val_{key}']:.3g} to {factor * mean[-1][f'val_{key}']:.3g}, "
            f"train to {factor * mean[-1][f'train_{key}']:.3g}"
            for kind, mean in means.items()
        ]
    return side_by_side(rows, figures.WIDTH, figures.CURVES_HEIGHT, f"p(y given x) by step. {'; '.join(words)}")


def _panel(title: str, mean: Sequence[Mapping[str, float]], key: str, factor: float, span: Sequence[float]) -> Markup:
    lines = [
        figures.Curve(split, [(step["step"], step[f"{split}_{key}"]) for step in mean], style)
        for split, style in (("val", "distilled"), ("train", "control"))
    ]
    return figures.curves(title, lines, y_scale=factor, span=span)


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"


def _mean(several: Sequence[Sequence[Mapping[str, float]]]) -> list[dict[str, float]]:
    """Means over seeds at the steps that all of them looked at."""
    by_step = [{look["step"]: look for look in curve} for curve in several]
    steps = sorted(set.intersection(*(set(curve) for curve in by_step)))
    return [
        {key: statistics.fmean(curve[step][key] for curve in by_step) for key in by_step[0][step]} for step in steps
    ]


def _turn(curve: Sequence[Mapping[str, float]]) -> list[str]:
    """The lowest NLL on val with its step, and the last; dashes where none was looked at."""
    if not curve:
        return ["–", "–"]
    best = min(curve, key=lambda look: look["val_nll"])
    return [f"{best['val_nll']:.3f} ({best['step']:.0f})", f"{curve[-1]['val_nll']:.3f}"]
