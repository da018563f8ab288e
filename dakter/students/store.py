"""A trained student at rest: ``weights.safetensors`` and, last, ``student.json`` that vouches for it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import safetensors.torch
from torch import nn

from dakter import config, storage
from dakter.errors import IntegrityError
from dakter.students.models import StudentConfig, build, num_parameters

WEIGHTS, RECORD = "weights.safetensors", "student.json"


@dataclass(frozen=True)
class LoadedStudent:
    """A student read back.

    Attributes:
        model: model scale (B, C, H, W) to logits (B, K, H, W), eval mode, CPU.
        config: its settings.
        bands: C.
        num_classes: K.
        record: what the trainer wrote about it.
        digest: sha256 of settings and weights.
    """

    model: nn.Module
    config: StudentConfig
    bands: int
    num_classes: int
    record: dict[str, Any]
    digest: str


def save_student(
    url: str, model: nn.Module, student: StudentConfig, bands: int, num_classes: int, record: dict[str, Any]
) -> str:
    """Write a student's folder (local or ``s3://``), its completion record last; returns its digest.

    Args:
        record: JSON; kept as it is under ``"record"``.
    """
    data = safetensors.torch.save({name: value.contiguous() for name, value in model.state_dict().items()})
    identity = {
        "config": student.dump(),
        "bands": bands,
        "num_classes": num_classes,
        "weights_sha256": hashlib.sha256(data).hexdigest(),
    }
    digest = config.digest_json(identity)
    storage.put(storage.join(url, WEIGHTS), data)
    storage.put_json(
        storage.join(url, RECORD),
        {**identity, "digest": digest, "num_parameters": num_parameters(model), "record": record},
    )
    return digest


def read_record(url: str) -> dict[str, Any] | None:
    """``student.json`` of a finished student, None if there is none (yet)."""
    where = storage.join(url, RECORD)
    return dict(storage.read_json(where)) if storage.exists(where) else None


def load_student(url: str) -> LoadedStudent:
    """Read a student and check it against its record.

    Raises:
        FileNotFoundError: no finished student stands there.
        IntegrityError: weights or settings are not those of the record.
    """
    record = read_record(url)
    if record is None:
        raise FileNotFoundError(f"{url}: no finished student ({RECORD} is missing); run the distill job")
    data = storage.read_bytes(storage.join(url, WEIGHTS))
    identity = {key: record[key] for key in ("config", "bands", "num_classes", "weights_sha256")}
    found = hashlib.sha256(data).hexdigest()
    if found != record["weights_sha256"] or config.digest_json(identity) != record["digest"]:
        raise IntegrityError(
            f"{url}: weights have sha256 {found}, expected {record['weights_sha256']} under digest "
            f"{record['digest']}; the files were altered: train the student again"
        )
    student = config.load(StudentConfig, record["config"], where=f"{url}/{RECORD}")
    # The weights on disk replace any pretrained ones: nothing is downloaded to load a student.
    model = build(student.model_copy(update={"encoder_weights": None}), record["bands"], record["num_classes"])
    model.load_state_dict(safetensors.torch.load(data))
    return LoadedStudent(
        model.eval(), student, record["bands"], record["num_classes"], record["record"], record["digest"]
    )
