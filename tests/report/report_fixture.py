"""Made-up records of a whole run, in the shapes that the stages write: for tests and for looking at a report.

No number here was measured. ``python tests/report/report_fixture.py FOLDER`` writes the report of each outcome.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy.ndimage import gaussian_filter

from dakter.report.build import build
from dakter.report.inputs import ReportInputs
from dakter.report.texture import compare_speckle
from dakter.rng import numpy_rng
from dakter.schema import OSD, soft_to_stored
from dakter.storage import to_json_bytes

SIDE = 64
K = len(OSD)
SETTINGS = {
    "train": {
        "diffusion": {"mode": "independent", "objective": "v", "b": None, "b_variant": "rms", "label_loss": "ce"},
        "train": {"steps": 5600, "batch_size": 32, "seed": 0},
    },
    "generate": {
        "sampler": {"scheduler": "dpmpp_2m", "steps": 20},
        "soft_label": {"mode": "readout"},
        "corpus": {"num_samples": 4096},
    },
}


def scene(index: int) -> tuple[np.ndarray, np.ndarray]:
    """A stored image (1, H, W) and probabilities (K, H, W) with soft edges."""
    rng = numpy_rng(5, "tests/report", index)
    fields = [gaussian_filter(rng.standard_normal((SIDE, SIDE)), s) / g for s, g in ((9, 0.03), (5, 0.055), (7, 0.04))]
    logits = np.zeros((K, SIDE, SIDE), np.float32)
    logits[1], logits[2] = 9 * (fields[1] - 1.1), 7 * (fields[2] - 1.2)
    logits[4] = 12 * (fields[0] - 1.0) if index % 3 == 0 else -9
    row, column = rng.integers(6, SIDE - 6, 2)
    logits[3] = -9
    if index % 2:
        logits[3, row : row + 3, column : column + 2] = 6
    p = np.exp(logits - logits.max(0))
    p /= p.sum(0)
    level = np.tensordot(np.array([110, 42, 55, 250, 170], np.float32), p, axes=1)
    image = np.clip(level * rng.gamma(6.0, 1 / 6.0, (SIDE, SIDE)), 0, 255).astype(np.uint8)
    return image[None], p.astype(np.float32)


def scenes(first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    found = [scene(i) for i in range(first, first + count)]
    return np.stack([image for image, _ in found]), np.stack([p for _, p in found])


def _estimate(mean: float, half: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - half, "high": min(1.0, mean + half)}


IOU = {
    "real": (0.941, 0.512, 0.397, 0.322, 0.902),
    "distilled": (0.952, 0.561, 0.472, 0.336, 0.917),
    "joint-model": (0.955, 0.581, 0.502, 0.426, 0.915),
}
HALF = (0.008, 0.041, 0.052, 0.118, 0.024)


def _student(arm: str, seed: int) -> dict[str, Any]:
    rng = numpy_rng(seed, f"tests/report/{arm}")
    iou = [value + 0.01 * float(rng.standard_normal()) for value in IOU[arm]]
    confidence = [(i + 0.5) / 15 for i in range(15)]
    bend = 0.75 if arm == "real" else 0.92
    frequency = [0.5 + bend * (c - 0.5) * (1 - 0.15 * math.sin(6 * c)) for c in confidence]
    count = [int(200_000 * (0.02 + (2 * c - 1) ** 6)) for c in confidence]
    count[9] = 0  # an empty bin, whose means are null
    bins = {
        "confidence": [c if n else None for c, n in zip(confidence, count, strict=True)],
        "frequency": [f if n else None for f, n in zip(frequency, count, strict=True)],
        "count": count,
    }
    return {
        "id": f"{arm}-seed{seed}",
        "path": f"students/{arm}-seed{seed}",
        "seed": seed,
        "architecture": {"real": "Unet", "distilled": "DeepLabV3Plus"}.get(arm, "JointUNet"),
        "num_parameters": 3_160_000 if arm == "joint-model" else 14_328_354,
        "evaluations": 8 if arm == "joint-model" else 1,
        "miou": sum(iou) / K,
        "iou": iou,
        "nll": 0.31 if arm == "real" else 0.26,
        "brier": 0.14,
        "ece": [0.03] * K,
        "temperature": 1.6 if arm == "real" else 1.15,
        "reliability": dict.fromkeys(OSD.names, bins),
    }


def _arm(arm: str) -> dict[str, Any]:
    iou = IOU[arm]
    scale = 1.0 if arm == "real" else 0.82
    return {
        "miou": _estimate(sum(iou) / K, 0.024),
        "iou": [{"class": n, **_estimate(m, h)} for n, m, h in zip(OSD.names, iou, HALF, strict=True)],
        "precision": [min(1.0, value + 0.09) for value in iou],
        "recall": [min(1.0, value + 0.06) for value in iou],
        "f1": [2 * value / (1 + value) for value in iou],
        "nll": 0.312 * scale,
        "nll_interval": _estimate(0.312 * scale, 0.018),
        "brier": 0.144 * scale,
        "ece": [0.021 * scale, 0.034 * scale, 0.041 * scale, 0.004, 0.012],
        "nll_tempered": 0.281 * scale,
        "brier_tempered": 0.139 * scale,
        "ece_tempered": [0.017 * scale, 0.022 * scale, 0.03 * scale, 0.004, 0.011],
        "students": [_student(arm, seed) for seed in range(3)],
    }


def _contrasts(shift: float) -> list[dict[str, Any]]:
    common = {"name": "distilled - real", "num_resamples": 2000, "level": 0.95}
    rows: list[tuple[str, str | None, float, float, float]]
    differences = [b - a for a, b in zip(IOU["real"], IOU["distilled"], strict=True)]
    rows = [("iou", n, d, d - 0.7 * h, d + 0.7 * h) for n, d, h in zip(OSD.names, differences, HALF, strict=True)]
    mean = sum(differences) / K
    rows += [("miou", None, mean, mean - 0.021 + shift, mean + 0.022 + shift)]
    rows += [("nll", None, -0.056, -0.081, -0.029), ("brier", None, -0.026, -0.054, 0.003)]
    return [
        {
            **common,
            "metric": metric,
            "class": name,
            "difference": d,
            "low": low,
            "high": high,
            "p_holm": None if metric == "miou" else 0.03,
        }
        for metric, name, d, low, high in rows
    ]


def _sweep_arm(arm: str) -> dict[str, Any]:
    rng = numpy_rng(1, f"tests/report/sweep/{arm}")
    names = ("Unet", "UnetPlusPlus", "DeepLabV3Plus", "FPN", "Segformer", "Linknet")
    trials: list[dict[str, Any]] = []
    for i in range(14):
        stopped = i % 3 == 1
        value = 0.6 + 0.05 * float(rng.standard_normal()) - 0.09 * stopped
        config = {"architecture": names[i % 6], "encoder": "resnet18", "learning_rate": 1e-3, "temperature": 1.5}
        trials.append({"id": f"{arm}-{i}", "config": config, "val_miou": value, "steps": 700, "stopped_early": stopped})
    best = max((t for t in trials if not t["stopped_early"]), key=lambda t: t["val_miou"])
    students = []
    for seed in range(3):
        history = [
            {
                "step": s,
                "loss": 1 / (1 + s / 100),
                "val_miou": best["val_miou"] * (1 - math.exp(-(s + 40 * seed) / 160)),
            }
            for s in range(50, 701, 50)
        ]
        students.append(
            {
                "id": f"{arm}-seed{seed}",
                "path": f"students/{arm}-seed{seed}",
                "seed": seed,
                "val_miou": history[-1]["val_miou"],
                "val_iou": list(IOU[arm]),
                "architecture": best["config"]["architecture"],
                "encoder": "resnet18",
                "num_parameters": 14_328_354,
                "steps": 700,
                "digest": "ab" * 32,
                "run_id": "0" * 32,
                "history": history,
            }
        )
    search = {"num_trials": 14, "num_stopped_early": 5, "best_val_miou": best["val_miou"], "trials": trials}
    return {"best": best["config"], "search": search, "students": students}


def _record(stage: str, seconds: float, figures: dict[str, Any]) -> dict[str, Any]:
    return {
        "stage": stage,
        "seconds": seconds,
        "figures": figures,
        "settings": {"out": "runs/demo", **SETTINGS.get(stage, {})},
        "settings_digest": f"{len(stage):x}4c1e9d0" * 8,
        "versions": {"python": "3.11.7", "torch": "2.15.0", "ray": "2.60.0", "mlflow": "3.17.2"},
        "hardware": {"machine": "x86_64", "cpus": 2},
    }


@functools.cache
def full_inputs() -> ReportInputs:
    """A run with every stage, a gain that is shown and a promotion."""
    real_images, real_soft = scenes(0, 12)
    images, soft = scenes(100, 8)
    val_images, val_soft = scenes(200, 4)
    wrong = {arm: np.roll(val_soft, turn, axis=-1) for arm, turn in (("real", 4), ("distilled", 1))}
    steps = [*range(10, 5601, 10)]
    noise = numpy_rng(3, "tests/report/history").standard_normal((len(steps), 2))
    history = [
        {
            "step": s,
            "image_loss": 0.11 + 0.9 * math.exp(-s / 300) + 0.008 * float(n[0]),
            "label_loss": 0.05 + 1.5 * math.exp(-s / 220) + 0.004 * float(n[1]),
            **({"consistency_loss": 0.3 + 0.1 * math.exp(-s / 900)} if s > 350 else {}),
        }
        for s, n in zip(steps, noise, strict=True)
    ]
    digest = {name: f"{i}f3a97bc" * 8 for i, name in enumerate(("tiles", "corpus", "model", "test", "sweep"))}
    reasons = [
        ("mIoU floor", True, 0.648, 0.4, "mIoU is 64.8 %; at least 40.0 % is required.", True),
        ("floor of oil spill", True, 0.561, 0.3, "IoU of oil spill is 56.1 %; at least 30.0 % is required.", True),
        ("gain over the champion", True, 0.0126, 0.0, "mIoU differs from the champion by +3.3 points.", True),
        ("test uses", False, 22.0, 20.0, "This test set has been used 22 times; plan a fresh test set.", False),
    ]
    keys = ("rule", "passed", "value", "bound", "text", "blocking")
    return ReportInputs(
        stages={
            "prepare": _record("prepare", 74, {"samples_per_second": 21.4, "num_tiles": 1580}),
            "train": _record(
                "train", 402, {"num_steps": 5600, "kept_step": 2000, "b": 0.433, "samples_per_second": 446.0}
            ),
            "generate": _record(
                "generate",
                288,
                {
                    "num_samples": 4096,
                    "samples_per_second": 14.2,
                    "class_shares": dict(zip(OSD.names, (0.861, 0.0172, 0.0688, 0.0005, 0.0525), strict=True)),
                },
            ),
            "distill": _record("distill", 211, {"samples_per_second": 96.0, "num_trials": 28}),
            "evaluate": _record("evaluate", 21, {"samples_per_second": 40.1}),
            "promote": _record("promote", 9, {"promoted": True}),
        },
        tiles_manifest={
            "digest": digest["tiles"],
            "source": "simulate",
            "licence": "Apache-2.0",
            "citation": "simulated scenes, CMOD5.N",
            "class_table": OSD.to_json(),
            "bands": ["VV"],
            "tile_px": SIDE,
            "dtype": "uint8",
            "value_range": [0.0, 255.0],
            "sensors": ["simulated"],
            "counts": {"train": 400, "val": 80, "test": 160, "unlabelled": 800},
            "class_shares": {s: [0.883, 0.0104, 0.0561, 0.0004, 0.0501] for s in ("train", "val", "test")},
            "image_rms": 0.433,
            "image_std": 0.391,
            "b_rms": 0.433,
            "b_std": 0.391,
            "leakage": {
                "num_pairs": {"train-val": 0, "train-test": 3, "val-test": 0},
                "num_images": {"train-val": 0, "train-test": 2, "val-test": 0},
                "num_pairs_within_splits": 11,
                "pairs": {"train-val": [], "train-test": [["train/simulated/00004", "test/simulated/00009"]]},
                "dropped": [],
                "num_dropped": 0,
            },
            "settings": {},
        },
        sweep={
            "tiles_digest": digest["tiles"],
            "corpus_digest": digest["corpus"],
            "model_digest": digest["model"],
            "class_names": list(OSD.names),
            "arms": {arm: _sweep_arm(arm) for arm in ("real", "distilled")},
        },
        evaluation={
            "test": {"digest": digest["test"], "num_images": 160, "num_groups": 151, "uses": 22},
            "class_names": list(OSD.names),
            "arms": {arm: _arm(arm) for arm in ("real", "distilled")},
            "contrasts": _contrasts(0.0),
            "candidate": {"arm": "distilled", "id": "distilled-seed1", "why": "highest val mIoU"},
            "sweep_digest": digest["sweep"],
            "tiles_digest": digest["tiles"],
        },
        decision={
            "promoted": True,
            "candidate": {"id": "distilled-seed1", "miou": 0.648},
            "champion": {"version": 3, "miou": 0.615},
            "reasons": [dict(zip(keys, reason, strict=True)) for reason in reasons],
            "test_uses": 22,
            "model_name": "dakter-student",
            "version": 4,
        },
        training_history=[{"loss": h["image_loss"] + h["label_loss"], **h} for h in history],
        training_curve=[
            {"step": step, "val_nll": 0.2 + 1e-9 * (step - 2000) ** 2, "train_nll": 0.19 - 2e-6 * step, "val_miou": 0.7}
            for step in range(500, 5001, 500)
        ],
        real_gallery=(real_images, real_soft.argmax(1).astype(np.uint8)),
        generated_gallery=(images, soft_to_stored(soft)),
        real_names=[f"{'train' if i < 8 else 'val'}/simulated/{i:05d}" for i in range(12)],
        generated_indices=list(range(0, 4096, 512)),
        predictions=(val_images, val_soft.argmax(1).astype(np.uint8), wrong),
        speckle=compare_speckle(
            (real_images, real_soft.argmax(1).astype(np.uint8)), (images, soft.argmax(1).astype(np.uint8)), OSD
        ),
        settings_yaml=yaml.safe_dump(SETTINGS, sort_keys=False),
        date="2026-01-31T12:00:00Z",
        title="demo",
    )


def with_joint_model(inputs: ReportInputs) -> ReportInputs:
    """The same run with the joint model evaluated, its latency measured, and promoted."""
    arm = _arm("joint-model")
    arm["students"] = [arm["students"][0] | {"id": "joint-model"}]
    contrast = {**_contrasts(0.0)[K], "name": "joint-model - real", "difference": 0.061, "low": -0.004, "high": 0.1}
    assert contrast["metric"] == "miou"
    evaluation = inputs.evaluation
    ids = [student["id"] for name in ("real", "distilled") for student in evaluation["arms"][name]["students"]]
    models = {name: {"ms": 10.0 + number, "digest": "ab" * 32} for number, name in enumerate(ids)}
    models["joint-model"] = {"ms": 80.4, "digest": "cd" * 32}
    return dataclasses.replace(
        inputs,
        evaluation={
            **evaluation,
            "arms": {**evaluation["arms"], "joint-model": arm},
            "contrasts": [*evaluation["contrasts"], contrast],
        },
        latency={"hardware": "2 cores of a made-up CPU", "size_px": SIDE, "runs": 7, "models": models},
        decision={**inputs.decision, "candidate": {"id": "joint-model", "arm": "joint-model"}},
    )


def not_shown_inputs() -> ReportInputs:
    """The gain's interval includes zero, the control is the candidate, and the gate says no to a first champion."""
    full = full_inputs()
    text = "IoU of oil spill is 51.2 %; at least 55.0 % is required."
    failed = {"rule": "floor of oil spill", "passed": False, "value": 0.512, "bound": 0.55, "text": text}
    remark = full.decision["reasons"][-1]
    return dataclasses.replace(
        full,
        evaluation={
            **full.evaluation,
            "contrasts": _contrasts(-0.02),
            "candidate": {"arm": "real", "id": "real-seed2", "why": "highest val mIoU"},
        },
        decision={
            **full.decision,
            "promoted": False,
            "champion": None,
            "reasons": [failed | {"blocking": True}, remark],
        },
    )


def bare_inputs() -> ReportInputs:
    """A run that stopped after its first stage."""
    full = full_inputs()
    return ReportInputs(
        stages={"prepare": full.stages["prepare"]},
        tiles_manifest={"class_table": OSD.to_json()},
        sweep={},
        evaluation={},
        decision={},
        training_history=[],
        real_gallery=None,
        generated_gallery=None,
    )


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for name, inputs in (
        ("full", full_inputs()),
        ("joint-model", with_joint_model(full_inputs())),
        ("not-shown", not_shown_inputs()),
        ("bare", bare_inputs()),
    ):
        html, facts = build(inputs)
        (folder / f"{name}.html").write_text(html, encoding="utf-8")
        (folder / f"{name}.json").write_bytes(to_json_bytes(facts))
