"""What each section of the report shows, worked out before the template sees it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from dakter.evaluate.speckle import decibels
from dakter.report import figures, pairs, pictures
from dakter.report.figures import Curve, Interval
from dakter.report.inputs import ARM_NAMES, CONTROL, DISTILLED, MODEL_NAMES, STAGES, ReportInputs
from dakter.report.page import plain
from dakter.report.pairs import Pair
from dakter.report.verdict import direction, level
from dakter.schema import IGNORE

# Pictures a gallery: enough to judge by eye, few enough to load on a phone.
MOST_PICTURES = 12
# Class of the style sheet, and name where room is scarce.
_STYLES = _SHORT = {CONTROL: "control", DISTILLED: "distilled"}


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
        pooled = [(_STYLES[a], bins) for a in ARM_NAMES if (bins := _pooled(arms[a]["students"], k, name))]
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


def data(inputs: ReportInputs) -> dict[str, Any]:
    """Tiles, their numbers and class shares, and the leakage report."""
    manifest, items = inputs.tiles_manifest, []
    if inputs.real_gallery is not None:
        images, labels = (a[:MOST_PICTURES] for a in inputs.real_gallery)
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            holds = pictures.shares_in_words(label, inputs.classes)
            name = inputs.real_names[i] if inputs.real_names else f"tile {i + 1}"
            items.append(
                {
                    "tiles": [
                        (pictures.image(image), f"SAR tile {name}"),
                        (pictures.class_map(label, inputs.classes), f"Its class map: {holds}"),
                    ],
                    "caption": f"{name.split('/')[0]}: {holds}",
                }
            )
    shares = {split: list(found) for split, found in manifest.get("class_shares", {}).items()}
    made = inputs.figure_of("generate", "class_shares")
    if made:
        shares["generated"] = [made.get(name) for name in inputs.classes.names]
    rows = [
        (name, [found[k] if k < len(found) else None for found in shares.values()])
        for k, name in enumerate(inputs.classes.names)
    ]
    about = {
        key: manifest[key]
        for key in ("source", "licence", "citation", "tile_px", "bands", "sensors", "counts", "value_range")
        if manifest.get(key) not in (None, "", [], {})
    }
    if (num_labelled := inputs.num_labelled()) is not None:
        about["unlabelled images that the model labelled"] = num_labelled
    about |= {f"{key}, model scale": manifest[key] for key in ("image_rms", "image_std") if key in manifest}
    return {
        "items": items,
        "splits": list(shares),
        "rows": rows,
        "about": about,
        "leakage": _leakage(manifest.get("leakage") or {}),
    }


def _leakage(found: Mapping[str, Any]) -> dict[str, Any] | None:
    """Near-duplicates across splits as a table, with whatever else the report of the tiles says."""
    if not found:
        return None
    pairs, images, named = (found.get(key, {}) for key in ("num_pairs", "num_images", "pairs"))
    return {
        "rows": [
            {
                "name": key.replace("-", " – "),
                "num_pairs": count,
                "num_images": images.get(key),
                "named": [" = ".join(map(str, pair)) for pair in named.get(key, ())],
            }
            for key, count in pairs.items()
        ],
        "total": sum(pairs.values()),
        "rest": {k: v for k, v in found.items() if k not in ("num_pairs", "num_images", "pairs")},
    }


def speckle(inputs: ReportInputs) -> dict[str, Any] | None:
    """Speckle statistics of generated against real tiles."""
    if not inputs.speckle:
        return None
    plots = []
    for key, title, x_label in (
        ("histogram", "Histogram, shares of pixels", "gray, 0 to 1"),
        ("spectrum", "Power spectrum, shares", "cycles per pixel"),
    ):
        table = inputs.speckle.get(key)
        if table:
            lines = [
                Curve(name, list(zip(table["x"], table[name], strict=True)), style)
                for name, style in (("real", "control"), ("generated", "distilled"))
            ]
            plots.append(figures.curves(title, lines, x_label=x_label))
    return {"rows": inputs.speckle.get("statistics", []), "plots": plots}


def generator(inputs: ReportInputs) -> dict[str, Any]:
    """Loss curves of the joint diffusion model and what it was."""
    wanted = (
        ("loss", "Loss"),
        ("image_loss", "Image loss"),
        ("label_loss", "Label loss"),
        ("consistency_loss", "Consistency loss (mean teacher)"),
    )
    plots = []
    for key, title in wanted:
        points = [(float(h["step"]), float(h[key])) for h in inputs.training_history if h.get(key) is not None]
        if points:
            plots.append(figures.curves(title, [Curve(title, points)]))
    if inputs.training_curve:
        lines = [
            Curve(name, [(float(row["step"]), float(row[key])) for row in inputs.training_curve], style)
            for name, key, style in (("val", "val_nll", "distilled"), ("train", "train_nll", "control"))
        ]
        plots.append(figures.curves("NLL of p(y given x): val (line), train (dashes)", lines))
    steered = inputs.figure_of("generate", "rendered") is not None
    about = {
        f"{section.replace('_', ' ')}: {name.replace('_', ' ')}": found
        for stage, section, name in (
            ("train", "diffusion", "mode"),
            ("train", "diffusion", "objective"),
            ("train", "diffusion", "label_loss"),
            ("train", "train", "batch_size"),
            ("train", "train", "keep"),
            ("generate", "sampler", "scheduler"),
            ("generate", "sampler", "steps"),
            ("generate", "soft_label", "mode"),
            *((("generate", "render", "label"), ("generate", "render", "guidance")) if steered else ()),
        )
        if (found := inputs.setting_of(stage, section, name)) is not None
    }
    for name, told in (inputs.figure_of("generate", "rendered") or {"classes": {}})["classes"].items():
        about[f"pairs drawn for label maps with {name}"] = f"{told['share']:g} of all; of {told['drawn_for']} " + (
            f"looked at the soft labels of {told['held']} hold it"
            if "held" in told
            else f"looked at, {told['damping_images']} measured: darker than around it by "
            f"{decibels(told['damping_db'])}, in training tiles by {decibels(told['damping_db_train'])}"
        )
    steps, kept = inputs.train_steps(), inputs.figure_of("train", "kept_step")
    return {
        "plots": [plot for plot in plots if plot],
        "about": about,
        "steps": steps,
        "kept_step": kept if kept != steps else None,
    }


def students(inputs: ReportInputs) -> dict[str, Any] | None:
    """The sweep's trials, the students trained with its best settings, and their validation curves."""
    arms = inputs.sweep.get("arms", {})
    if not arms:
        return None
    tested = {s["id"]: s["miou"] for arm in inputs.evaluation.get("arms", {}).values() for s in arm["students"]}
    span = [t["val_miou"] for arm in arms.values() for t in arm["search"]["trials"] if t.get("val_miou") is not None]
    plots: list[Markup] = []
    lines, rows, searches = [], [], []
    for arm in (a for a in ARM_NAMES if a in arms):
        search = arms[arm]["search"]
        kept = [t for t in search["trials"] if t["config"] == arms[arm]["best"] and t.get("val_miou") is not None]
        best = max(kept, key=lambda t: t["val_miou"], default=None)
        plots.append(
            figures.trials(f"Trials: {ARM_NAMES[arm]}", search["trials"], str(best["id"]) if best else None, span)
        )
        searches.append({"arm": ARM_NAMES[arm], "best": arms[arm]["best"], **search})
        for student in arms[arm]["students"]:
            rows.append({"arm": arm, "test_miou": estimate(tested.get(student["id"]))["mean"], **student})
            points = [
                (float(h["step"]), float(h["val_miou"]))
                for h in student.get("history", ())
                if h.get("val_miou") is not None
            ]
            lines.append(Curve(student["id"], points, _STYLES[arm]))
    curve = figures.curves("Validation mIoU, %", lines, y_scale=100.0)
    return {"plots": [p for p in (*plots, curve) if p], "rows": rows, "searches": searches}


def stages(inputs: ReportInputs) -> dict[str, Any]:
    """Minutes and throughput of each stage, and the machine they ran on."""
    records = {name: inputs.stages[name] for name in inputs.stage_names() if inputs.stages.get(name)}
    rows = [
        {
            "name": name,
            "minutes": record["seconds"] / 60,
            "rate": record.get("figures", {}).get("samples_per_second"),
            "digest": str(record.get("settings_digest", ""))[:12],
            "figures": {k: v for k, v in record.get("figures", {}).items() if isinstance(v, (int, float, str, bool))},
        }
        for name, record in records.items()
    ]
    bars = [(row["name"], row["minutes"], f"{row['minutes']:.1f} min") for row in rows]
    return {
        "rows": rows,
        # A gate that says no ends its stage before a record is written; its decision stands in its own section.
        "missing": [n for n in STAGES if n not in records and not (n == "promote" and inputs.decision)],
        "planned": len(inputs.stage_names()),
        "total": sum(row["minutes"] for row in rows),
        "plot": figures.bars("Minutes of each stage", bars, x_label="wall clock") if rows else None,
        "versions": _agreed(records, "versions"),
        "hardware": _agreed(records, "hardware"),
    }


def _agreed(records: Mapping[str, Mapping[str, Any]], key: str) -> dict[str, Any]:
    """A table of all stages; where they differ, every value with its stages is listed."""
    found: dict[str, dict[str, list[str]]] = {}
    for stage, record in records.items():
        for name, value in record.get(key, {}).items():
            found.setdefault(name, {}).setdefault(plain(value), []).append(stage)
    return {
        name: next(iter(values)) if len(values) == 1 else ", ".join(f"{v} ({'/'.join(s)})" for v, s in values.items())
        for name, values in found.items()
    }
