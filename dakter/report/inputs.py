"""What a report is made of: the records that the stages left, and small arrays for the galleries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dakter.errors import DataError
from dakter.evaluate.summary import JOINT_MODEL
from dakter.schema import ClassTable, check_images, check_labels

STAGES = ("prepare", "train", "generate", "distill", "evaluate", "promote")
# Runs after the stage that it is named with, if asked for.
OPTIONAL_STAGE, AFTER = "label", "train"
# The two arms of the main job, and what a reader calls them.
CONTROL, DISTILLED = "real", "distilled"
ARM_NAMES = {CONTROL: "real only (control)", DISTILLED: "distilled"}
# All that may be evaluated: the joint model is no arm of students, and no part of the comparison of the two.
MODEL_NAMES = {**ARM_NAMES, JOINT_MODEL: "joint model, p(y given x)"}


@dataclass(frozen=True)
class ReportInputs:
    """Everything a report shows; what is missing is said to be missing.

    Nothing is read from disk or clock here, so equal inputs give equal bytes.

    Attributes:
        stages: stage name -> stage record (``jobs/_cli.stage_record``). Of a record's figures these are looked for:
            ``samples_per_second`` (any stage); ``num_steps`` and ``b`` (train); ``num_samples`` and
            ``class_shares`` by name (generate); ``num_samples`` (label, which a run need not have).
        tiles_manifest: manifest of the tile corpus as JSON (``class_table`` is needed; the rest is shown if there).
        sweep: sweep.json of the distillation.
        evaluation: evaluation.json.
        latency: latency.json of the evaluation; empty if nothing was measured.
        decision: decision.json of the promotion.
        training_history: log lines of the generator's training: step, loss and its parts.
        training_curve: looks of that training at p(y | x): step, val_nll, train_nll, val_miou; empty if it took none.
        real_gallery: stored images (N, C, H, W) uint8 or uint16 and class maps (N, H, W) uint8.
        generated_gallery: stored images (N, C, H, W) uint8 and soft labels (N, K, H, W) uint8 that sum to 255.
        real_names: a caption each, ``<split>/<sensor>/<file>``; empty for none.
        generated_indices: index within the corpus of each generated pair; empty for none.
        predictions: stored images, class maps and arm -> probabilities (N, K, H, W) on validation tiles.
        speckle: ``{"statistics": [{"name", "unit", "real", "generated"}], "histogram": {"x", "real", "generated"},
            "spectrum": {"x", "real", "generated"}}``, each part optional.
        settings_yaml: the run's settings as resolved.
        date: when the run ended, ISO 8601.
        title: name of the run, such as its preset.
    """

    stages: Mapping[str, Mapping[str, Any]]
    tiles_manifest: Mapping[str, Any]
    sweep: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    decision: Mapping[str, Any]
    training_history: Sequence[Mapping[str, float]]
    real_gallery: tuple[np.ndarray, np.ndarray] | None
    generated_gallery: tuple[np.ndarray, np.ndarray] | None
    real_names: Sequence[str] = ()
    generated_indices: Sequence[int] = ()
    predictions: tuple[np.ndarray, np.ndarray, Mapping[str, np.ndarray]] | None = None
    speckle: Mapping[str, Any] = field(default_factory=dict)
    latency: Mapping[str, Any] = field(default_factory=dict)
    settings_yaml: str = ""
    date: str = ""
    title: str = ""
    training_curve: Sequence[Mapping[str, float]] = ()

    def __post_init__(self) -> None:
        """Raises DataError for galleries that do not fit the class table or one another."""
        if "class_table" not in self.tiles_manifest:
            raise DataError("report: the tiles manifest has no class_table; pass the manifest.json of the tile corpus")
        k = len(self.classes)
        if self.real_gallery is not None:
            images, labels = self.real_gallery
            check_images(images, where="report: real gallery")
            check_labels(labels, images, k, where="report: real gallery")
            _check_count("real_names", self.real_names, len(images))
        if self.generated_gallery is not None:
            images, soft = self.generated_gallery
            check_images(images, where="report: generated gallery")
            _check_soft(soft, images, k, where="report: generated gallery")
            _check_count("generated_indices", self.generated_indices, len(images))
        if self.predictions is not None:
            images, labels, arms = self.predictions
            check_images(images, where="report: predictions")
            check_labels(labels, images, k, where="report: predictions")
            for arm, probabilities in arms.items():
                _check_soft(probabilities, images, k, where=f"report: predictions of {arm}")

    @property
    def classes(self) -> ClassTable:
        return ClassTable.from_json(dict(self.tiles_manifest["class_table"]))

    def figure_of(self, stage: str, name: str) -> Any:
        """A figure of a stage record, or None."""
        return self.stages.get(stage, {}).get("figures", {}).get(name)

    def setting_of(self, stage: str, section: str, name: str) -> Any:
        """A setting of a stage record, or None."""
        table = self.stages.get(stage, {}).get("settings", {}).get(section)
        return table.get(name) if isinstance(table, Mapping) else None

    def balance(self) -> tuple[float | None, str]:
        """The b that was used, and where it came from; (None, reason) if no record tells."""
        fixed = self.setting_of("train", "diffusion", "b")
        figure = self.figure_of("train", "b")
        source = "set by hand" if fixed is not None else "from the training images"
        if figure is not None or fixed is not None:
            return float(figure if figure is not None else fixed), source
        variant = self.setting_of("train", "diffusion", "b_variant")
        if variant is not None and self.tiles_manifest.get(f"b_{variant}") is not None:
            return float(self.tiles_manifest[f"b_{variant}"]), source
        return None, "no record of the training stage"

    def train_steps(self) -> int | None:
        """Optimiser steps of the generator, or None."""
        found = self.figure_of("train", "num_steps")
        if found is None and self.training_history:
            found = self.training_history[-1]["step"]
        return None if found is None else int(found)

    def num_generated(self) -> int | None:
        """Pairs in the synthetic corpus, or None."""
        found = self.figure_of("generate", "num_samples")
        found = self.setting_of("generate", "corpus", "num_samples") if found is None else found
        return None if found is None else int(found)

    def stage_names(self) -> tuple[str, ...]:
        """Stages of this run in their order, with the optional one if it left a record."""
        at = STAGES.index(AFTER) + 1
        return (*STAGES[:at], *([OPTIONAL_STAGE] if self.stages.get(OPTIONAL_STAGE) else []), *STAGES[at:])

    def num_labelled(self) -> int | None:
        """Real unlabelled images that the model labelled; None if it was not asked to."""
        found = self.figure_of(OPTIONAL_STAGE, "num_samples")
        return None if found is None else int(found)

    def beside(self) -> str:
        """What the distilled arm has beside real labels, in words."""
        share = self.sweep.get("figures", {}).get("unlabelled_share") or 0
        words = (["generated pairs"] if share < 1 else []) + (["real images that the model labelled"] if share else [])
        return " and ".join(words)

    def primary_contrast(self) -> Mapping[str, Any] | None:
        """distilled - real in mIoU, with its interval; None before evaluation."""
        return next((c for c in self.contrasts() if c["metric"] == "miou"), None)

    def contrasts(self, arm: str = DISTILLED) -> list[Mapping[str, Any]]:
        """Every contrast of an arm against real, that of mIoU (for distilled the primary one) first."""
        name = f"{arm} - {CONTROL}"
        found = [c for c in self.evaluation.get("contrasts", ()) if c["name"] == name]
        return sorted(found, key=lambda c: c["metric"] != "miou")


def _check_count(what: str, given: Sequence[Any], expected: int) -> None:
    if given and len(given) != expected:
        raise DataError(f"report: {len(given)} {what} for {expected} pictures; pass one each, or none")


def _check_soft(soft: np.ndarray, images: np.ndarray, num_classes: int, *, where: str) -> None:
    expected = (images.shape[0], num_classes, *images.shape[2:])
    if soft.shape != expected:
        raise DataError(f"{where}: soft labels have shape {soft.shape}; expected {expected}")
    total = 255.0 if soft.dtype == np.uint8 else 1.0
    worst = float(np.abs(soft.sum(axis=1, dtype=np.float64) - total).max()) / total if soft.size else 0.0
    if worst > 0.02:
        raise DataError(f"{where}: soft labels sum to 1 within {worst:.3g} only; expected 0.02 (uint8 sums to 255)")
