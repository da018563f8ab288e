"""What the report shows of how a result was made: data, generator, sweep and stages; scores are in ``sections``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from dakter.evaluate.speckle import decibels
from dakter.report import figures, pictures
from dakter.report.figures import Curve
from dakter.report.inputs import ARM_NAMES, STAGES, ReportInputs
from dakter.report.page import plain
from dakter.report.sections import MOST_PICTURES, STYLES, estimate


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
            lines.append(Curve(student["id"], points, STYLES[arm]))
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
