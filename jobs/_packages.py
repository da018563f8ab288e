"""What is scored on test and put up for promotion, packaged: students, and the joint model's own p(y | x)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dakter import storage
from dakter.config import digest_json
from dakter.diffusion.package import PackagedLabeller
from dakter.errors import ConflictError, DataError, listing
from dakter.packaging import Packaged
from dakter.students.package import PackagedStudent, stride_of
from dakter.students.store import LoadedStudent


def student_package(
    student: LoadedStudent, tiles: Mapping[str, Any], class_names: Sequence[str], temperature: float
) -> PackagedStudent:
    """A student with what a user would have to know; ``tiles`` is the manifest of its tiles as JSON."""
    low, high = tiles["value_range"]
    return PackagedStudent(
        student.model,
        value_range=(float(low), float(high)),
        bands=tiles["bands"],
        class_names=class_names,
        stride=stride_of(student.model),
        temperature=temperature,
    ).eval()


@dataclass(frozen=True)
class JointModel:
    """The joint model as it would be scored and registered.

    Attributes:
        plain: its package at temperature 1, on the CPU.
        model_digest: of the saved model.
    """

    plain: PackagedLabeller
    model_digest: str

    @property
    def digest(self) -> str:
        """Identity of what is scored: the model and how it is asked; the temperature follows from val."""
        how = {"evaluations": self.plain.evaluations, "noise_seed": self.plain.seed}
        return digest_json({"model_digest": self.model_digest, **how})

    def package(self, temperature: float) -> PackagedLabeller:
        """The same with a temperature."""
        package = copy.deepcopy(self.plain)
        package.temperature.fill_(temperature)
        return package


def open_joint_model(
    url: str, tiles: Mapping[str, Any], class_names: Sequence[str], *, evaluations: int, seed: int
) -> JointModel | None:
    """The joint model at ``url`` as a segmenter; None if it was trained in mode joint, where p(y | x) is of no use.

    Args:
        url: of the saved model.
        tiles: manifest, as JSON, of the tiles that it must have learned from.
        class_names: of those tiles.
        evaluations, seed: see ``JointDiffusionPipeline.packaged``.

    Raises:
        DataError: no model is there.
        ConflictError: it learned from other tiles, or reads or tells something else than they hold.
        IntegrityError: it was altered.
    """
    from dakter.diffusion.pipeline import open_model  # with all of diffusers, where a model is really wanted

    if not storage.exists(storage.join(url, "model.json")):
        raise DataError(
            f"{url}: no joint model (no model.json); expected the one that jobs/train.py left: run it, mend "
            "paths.model, or leave the joint model out (evaluate.joint_model false)"
        )
    opened = open_model(url)
    config = opened.pipeline.config
    if config.mode != "independent":
        return None
    there = {
        "tiles": str(opened.record.get("identity", {}).get("tiles_digest"))[:16],
        "bands": list(config.bands),
        "classes": list(opened.pipeline.class_table.names),
        "range of values": [float(value) for value in config.value_range],
    }
    here = {
        "tiles": str(tiles["digest"])[:16],
        "bands": list(tiles["bands"]),
        "classes": list(class_names),
        "range of values": [float(value) for value in tiles["value_range"]],
    }
    differences = [f"{key}: {there[key]} there, {here[key]} here" for key in here if there[key] != here[key]]
    if differences:
        raise ConflictError(
            f"{url}: the joint model is not of these tiles:\n{listing(differences)}\nMend paths.model or paths.tiles, "
            "or leave the joint model out (evaluate.joint_model false)"
        )
    return JointModel(opened.pipeline.packaged(evaluations, seed), opened.digest)


def raw_values(stored: np.ndarray, value_range: Sequence[float]) -> np.ndarray:
    """Stored images ``(B, C, H, W)`` uint8 or uint16 as raw float32 in ``value_range``."""
    low, high = value_range
    step = np.float32((high - low) / np.iinfo(stored.dtype).max)
    return stored.astype(np.float32) * step + np.float32(low)


@torch.inference_mode()
def predict_raw(package: Packaged, raw: np.ndarray, batch: int = 16) -> np.ndarray:
    """Probabilities float32 ``(B, K, H, W)`` of raw images float32 ``(B, C, H, W)``; computed where the package is."""
    parts = [
        package(torch.from_numpy(raw[start : start + batch]).to(package.low.device)).cpu().numpy()
        for start in range(0, len(raw), batch)
    ]
    return np.concatenate(parts)
