"""What the report shows of scores and pictures, worked out before the template sees it; the rest is in ``making``."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dakter.report import figures, pairs, pictures
from dakter.report.figures import Interval
from dakter.report.inputs import ARM_NAMES, CONTROL, DISTILLED, MODEL_NAMES, ReportInputs
from dakter.report.pairs import Pair
from dakter.report.verdict import direction, level
from dakter.schema import IGNORE

# Pictures a gallery: enough to judge by eye, few enough to load on a phone.
MOST_PICTURES = 12
# Class of the style sheet, and name where room is scarce.
STYLES = _SHORT = {CONTROL: "control", DISTILLED: "distilled"}


def estimate(value: Any) -> dict[str, float | None]:
    """``{"mean", "low", "high"}`` of an estimate or of a bare number; NaN and null become None."""
    table = value if isinstance(value, Mapping) else {"mean": value}
    found = {key: table.get(key) for key in ("mean", "low", "high")}
    return {k: None if v is None or not math.isfinite(v) else float(v) for k, v in found.items()}


def _row(name: str, found: Mapping[str, float | None], scale: float, primary: bool = False) -> Interval | None:
    mean, low, high = found["mean"], found["low"], found["high"]
    if mean is None:
        return None
    low, high = mean if low is None else low, mean if high is None else high
    return Interval(name, scale * mean, scale * low, scale * high, primary)


def _difference(contrast: Mapping[str, Any]) -> dict[str, float | None]:
    return estimate({"mean": contrast["difference"], "low": contrast["low"], "high": contrast["high"]})


def _contrast_name(contrast: Mapping[str, Any]) -> str:
    metric = str(contrast["metric"])
    if metric == "miou":
        return "mIoU"
    if metric.startswith("iou"):
        return str(contrast.get("class") or metric.removeprefix("iou").strip(" :/_.[]"))
    return {"nll": "NLL", "brier": "Brier"}.get(metric, metric)


def gain(inputs: ReportInputs) -> dict[str, Any] | None:
    """Differences of distilled against control: IoU in points, proper scores on an axis of their own."""
    contrasts = inputs.contrasts()
    if not contrasts:
        return None
    plots: dict[bool, list[Interval]] = {True: [], False: []}
    rows = []
    for contrast in contrasts:
        metric, name = str(contrast["metric"]), _contrast_name(contrast)
        in_points = "iou" in metric
        found = _difference(contrast)
        row = _row(name, found, 100.0 if in_points else 1.0, metric == "miou")
        if row is not None:
            plots[in_points].append(row)
        rows.append(
            {"name": name, "in_points": in_points, "shown": direction(contrast), "p": contrast.get("p_holm"), **found}
        )
    return {
        "iou": figures.forest("Difference in IoU, points", plots[True], x_label="distilled − control, points"),
        "proper": figures.forest(
            "Difference in proper scores", plots[False], x_label="distilled − control (lower is better)", digits=3
        )
        if plots[False]
        else None,
        "rows": rows,
        "level": level(contrasts[0]),
        "num_resamples": contrasts[0].get("num_resamples"),
        "holm": any(row["p"] is not None for row in rows),
        "students": {arm: len(inputs.evaluation["arms"][arm]["students"]) for arm in (CONTROL, DISTILLED)},
        "test": inputs.evaluation.get("test", {}),
    }


def models(inputs: ReportInputs) -> list[dict[str, Any]]:
    """A row for everything that was evaluated: scores on test, the difference to the control, and what it costs.

    ``ms`` is the median over an arm's students of their median milliseconds an image, None where not all were measured.
    """
    rows = []
    for name, words in MODEL_NAMES.items():
        arm = inputs.evaluation.get("arms", {}).get(name)
        if arm is None:
            continue
        contrast = next(
            (c for c in inputs.evaluation["contrasts"] if c["name"] == f"{name} - {CONTROL}" and c["metric"] == "miou"),
            None,
        )
        measured = [inputs.latency.get("models", {}).get(student["id"], {}).get("ms") for student in arm["students"]]
        rows.append(
            {
                "name": words,
                "miou": estimate(arm["miou"]),
                "nll": estimate(arm.get("nll_interval") or arm.get("nll")),
                "difference": None if contrast is None else _difference(contrast),
                "num_parameters": arm["students"][0].get("num_parameters"),
                "evaluations": arm["students"][0].get("evaluations"),
                "ms": None if None in measured else statistics.median(measured),
            }
        )
    return rows


def scores(inputs: ReportInputs) -> dict[str, Any] | None:
    """Per-class scores of both arms, and a row for each model."""
    arms = inputs.evaluation.get("arms", {})
    if CONTROL not in arms or DISTILLED not in arms:
        return None
    names = inputs.classes.names
    rows, plotted = [], []
    for k, name in enumerate((*names, "mIoU")):
        last = k == len(names)
        pair = {arm: estimate(arms[arm]["miou"] if last else arms[arm]["iou"][k]) for arm in ARM_NAMES}
        others = {
            arm: [None if last else estimate(arms[arm][metric][k])["mean"] for metric in ("precision", "recall", "f1")]
            for arm in ARM_NAMES
        }
        control, distilled = pair[CONTROL]["mean"], pair[DISTILLED]["mean"]
        difference = None if control is None or distilled is None else distilled - control
        rows.append({"name": name, "last": last, "pair": pair, "others": others, "difference": difference})
        drawn = [_row(name, pair[arm], 100.0) for arm in (CONTROL, DISTILLED)]
        if drawn[0] is not None and drawn[1] is not None:
            plotted.append((name, drawn[0], drawn[1]))
    plot = figures.levels("IoU on the test set, %", plotted, x_label="IoU, %")
    return {"rows": rows, "plot": plot, "test": inputs.evaluation.get("test", {}), "models": models(inputs)}


def _of_class(values: Any, k: int, name: str) -> Any:
    return values.get(name) if isinstance(values, Mapping) else values[k]


def _pooled(students: Sequence[Mapping[str, Any]], k: int, name: str) -> dict[str, list[float]] | None:
    """Reliability bins of all students of an arm together, weighted by their counts."""
    tables = [t for s in students if (t := _of_class(s.get("reliability", {}), k, name))]
    if not tables:
        return None
    count = np.array([t["count"] for t in tables], np.float64)
    out: dict[str, list[float]] = {"count": count.sum(0).tolist()}
    for key in ("confidence", "frequency"):
        values = np.array([[math.nan if v is None else v for v in t[key]] for t in tables], np.float64)
        total = np.where(count > 0, values * count, 0.0).sum(0)
        out[key] = np.divide(total, count.sum(0), out=np.full(total.shape, math.nan), where=count.sum(0) > 0).tolist()
    return out


def calibration(inputs: ReportInputs) -> dict[str, Any] | None:
    """Proper scores, class-wise ECE and reliability panels."""
    arms = inputs.evaluation.get("arms", {})
    if CONTROL not in arms or DISTILLED not in arms:
        return None
    rows = []
    for metric, name in (("nll", "NLL, nats a pixel"), ("brier", "Brier score")):
        cells = []
        for arm in ARM_NAMES:
            known = arms[arm].get(f"{metric}_interval") or arms[arm].get(metric)
            cells += [estimate(known), estimate(arms[arm].get(f"{metric}_tempered"))]
        rows.append({"name": name, "cells": cells})
    panels = []
    for k, name in enumerate(inputs.classes.names):
        cells = [estimate(_per_class(arms[a].get(m), k, name)) for a in ARM_NAMES for m in ("ece", "ece_tempered")]
        rows.append({"name": f"ECE, {name}", "cells": cells})
        pooled = [(STYLES[a], bins) for a in ARM_NAMES if (bins := _pooled(arms[a]["students"], k, name))]
        if pooled:
            panels.append(figures.reliability(name, pooled))
    temperatures = {
        arm: [s["temperature"] for s in arms[arm]["students"] if s.get("temperature") is not None] for arm in ARM_NAMES
    }
    return {"rows": rows, "panels": panels, "temperatures": temperatures}


def _per_class(values: Any, k: int, name: str) -> Any:
    return None if values is None else _of_class(values, k, name)


def generated(inputs: ReportInputs) -> dict[str, Any] | None:
    """Generated pairs: image, class map, soft label, entropy."""
    if inputs.generated_gallery is None:
        return None
    table, indices = inputs.classes, inputs.generated_indices
    found = [
        Pair(image, stored, f"sample {indices[i]}" if indices else f"pair {i + 1}")
        for i, (image, stored) in enumerate(zip(*(a[:MOST_PICTURES] for a in inputs.generated_gallery), strict=True))
    ]
    items, entropies = pairs.rows(found, table)
    return {
        "items": items,
        "heads": pairs.heads("soft label"),
        "most_nats": f"{math.log(len(table)):.2f}",
        "mean_entropy": sum(entropies) / len(entropies) if entropies else None,
        "count": inputs.num_generated(),
    }


def predictions(inputs: ReportInputs) -> dict[str, Any] | None:
    """Validation tiles with what each arm makes of them."""
    if inputs.predictions is None:
        return None
    images, labels, arms = inputs.predictions
    shown = [arm for arm in ARM_NAMES if arm in arms]
    items = []
    for i in range(min(len(images), MOST_PICTURES)):
        truth = labels[i]
        tiles = [
            (pictures.image(images[i]), f"Validation image {i + 1}"),
            (pictures.class_map(truth, inputs.classes), f"Label: {pictures.shares_in_words(truth, inputs.classes)}"),
        ]
        known = truth != IGNORE
        right = []
        for arm in shown:
            classes = arms[arm][i].argmax(0).astype(np.uint8)
            share = float((classes == truth)[known].mean()) if known.any() else math.nan
            right.append(f"{_SHORT[arm]} {100 * share:.0f}\u202f%")
            words = pictures.shares_in_words(classes, inputs.classes)
            tiles.append((pictures.class_map(classes, inputs.classes), f"Prediction of {ARM_NAMES[arm]}: {words}"))
        items.append({"tiles": tiles, "caption": f"pixels right: {', '.join(right)}"})
    return {"items": items, "heads": ("image", "label", *(_SHORT[arm] for arm in shown))}
