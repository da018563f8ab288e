"""What promotion holds in its hands: the evaluation's candidate, packaged, with its showing on the test set."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dakter import storage
from dakter.config import digest_json
from dakter.errors import ConflictError, DataError, IntegrityError
from dakter.promotion import Evidence
from dakter.registry import Version
from dakter.students.models import num_parameters
from dakter.students.package import PackagedStudent, stride_of
from dakter.students.store import load_student
from jobs._cli import JobSettings

ROLLED_BACK_TAG = "dakter.rolled_back"


@dataclass(frozen=True)
class Candidate:
    """The student that the evaluation puts forward.

    Attributes:
        record: its entry in evaluation.json, with ``arm``.
        where: its folder.
        package: the network with all that belongs to it, eval mode.
        identity: metadata of the package and digests of what it was made from; JSON.
        confusion, groups: its showing, int64 (N, K, K) and (N,).
        test: digest, counts and uses of the test set.
    """

    record: dict[str, Any]
    where: str
    package: PackagedStudent
    identity: dict[str, Any]
    confusion: np.ndarray
    groups: np.ndarray
    test: dict[str, Any]

    @property
    def digest(self) -> str:
        """Identity of the package: equal digests are one version."""
        return digest_json(self.identity)

    @property
    def showing_name(self) -> str:
        """Where a version's run keeps its confusion on this test set."""
        return f"test/{self.test['digest'][:32]}/confusion.npz"

    def evidence(
        self, version: Version, confusion: np.ndarray, groups: np.ndarray, *, own: bool, rolled_back: str | None = None
    ) -> Evidence:
        """The evidence of a version on this test set; ``own`` adds what is known of the candidate alone."""
        scalars = {key: self.record.get(key) for key in ("miou", "nll", "brier", "nll_tempered", "brier_tempered")}
        return Evidence(
            f"version {version.number}",
            confusion,
            groups,
            self.package.class_names,
            self.test["digest"],
            test_uses=int(self.test["uses"]),
            num_parameters=num_parameters(self.package) if own else None,
            rolled_back=rolled_back,
            scalars=scalars if own else {},
            provenance={key: str(value) for key, value in self.identity.items() if own and key.endswith("_digest")},
        )


def read_candidate(settings: JobSettings) -> Candidate:
    """Read evaluation, sweep, tile manifest and student, and check that they belong together.

    Raises:
        DataError: a stage before has not finished.
        ConflictError, IntegrityError: its results are of other tiles or another student.
    """
    url = settings.place("evaluation")
    evaluation = _stage(url, "evaluation.json", "evaluate")
    tiles = _stage(settings.place("tiles"), "manifest.json", "prepare")
    sweep = _stage(settings.place("sweep"), "sweep.json", "distill")
    if tiles["digest"] != evaluation["tiles_digest"]:
        raise ConflictError(
            f"{settings.place('tiles')}: tiles {tiles['digest'][:16]}; the evaluation used "
            f"{evaluation['tiles_digest'][:16]}; mend paths.tiles or run jobs/evaluate.py again"
        )
    arm, name = evaluation["candidate"]["arm"], evaluation["candidate"]["id"]
    record = next((item for item in evaluation["arms"][arm]["students"] if item["id"] == name), None)
    if record is None:
        raise IntegrityError(f"{url}/evaluation.json: candidate {name!r} is not a student of arm {arm!r}")
    where = storage.join(settings.place("sweep"), record["path"])
    student = load_student(where)
    if student.digest != evaluation["students"][name]:
        raise IntegrityError(
            f"{where}: student {student.digest[:16]}; the evaluation scored {evaluation['students'][name][:16]}; run "
            "jobs/evaluate.py again, to another place"
        )
    low, high = tiles["value_range"]
    package = PackagedStudent(
        student.model,
        value_range=(float(low), float(high)),
        bands=tiles["bands"],
        class_names=evaluation["class_names"],
        stride=stride_of(student.model),
        temperature=float(record.get("temperature") or 1.0),
    ).eval()
    made_from = {"tiles_digest": tiles["digest"], "student_digest": student.digest}
    made_from |= {key: sweep[key] for key in ("corpus_digest", "model_digest", "labelled_digest") if sweep.get(key)}
    with np.load(io.BytesIO(storage.read_bytes(storage.join(url, "confusion.npz")))) as arrays:
        confusion, groups = arrays[name], arrays["groups"]
    return Candidate(
        {**record, "arm": arm, "architecture": student.config.architecture, "encoder": student.config.encoder},
        where,
        package,
        {**package.metadata(), **made_from},
        confusion,
        groups,
        dict(evaluation["test"]),
    )


def pack(confusion: np.ndarray, groups: np.ndarray) -> bytes:
    """A showing as the bytes of an .npz file."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, confusion=confusion, groups=groups)
    return buffer.getvalue()


def unpack(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Inverse of ``pack``."""
    with np.load(io.BytesIO(data)) as arrays:
        return arrays["confusion"], arrays["groups"]


def facts(version: Version) -> dict[str, Any]:
    """A version for a JSON document."""
    kept = {key.removeprefix("dakter."): value for key, value in version.tags.items() if key.startswith("dakter.")}
    return {"version": version.number, "run_id": version.run_id, "uri": version.uri, **kept}


def _stage(url: str, name: str, job: str) -> Mapping[str, Any]:
    try:
        return dict(storage.read_json(storage.join(url, name)))
    except FileNotFoundError:
        raise DataError(f"{url}: no finished {job} stage (no {name}); run jobs/{job}.py first, or mend paths") from None
