"""What promotion holds in its hands: the candidate, packaged, with its showing on the test set and what it costs."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dakter import storage
from dakter.config import digest_json
from dakter.errors import ConflictError, DataError, IntegrityError
from dakter.evaluate.summary import JOINT_MODEL
from dakter.packaging import Packaged
from dakter.promotion import CandidateChoice, Evidence
from dakter.registry import Version
from dakter.students.store import load_student
from jobs._cli import JobSettings
from jobs._packages import open_joint_model, student_package

ROLLED_BACK_TAG = "dakter.rolled_back"


@dataclass(frozen=True)
class Candidate:
    """The student, or the joint model, that stands for promotion.

    Attributes:
        record: its entry in evaluation.json, with ``arm``.
        where: its folder.
        package: the network with all that belongs to it, eval mode.
        identity: metadata of the package and digests of what it was made from; JSON.
        cost: ``num_parameters``, ``evaluations`` (of the network, an image), and if the evaluation measured it
            ``latency_ms`` and ``latency_on``.
        confusion, groups: its showing, int64 (N, K, K) and (N,).
        test: digest, counts and uses of the test set.
    """

    record: dict[str, Any]
    where: str
    package: Packaged
    identity: dict[str, Any]
    cost: dict[str, Any]
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
            num_parameters=self.package.num_parameters if own else None,
            rolled_back=rolled_back,
            scalars=scalars if own else {},
            provenance={key: str(value) for key, value in self.identity.items() if own and key.endswith("_digest")},
        )


def read_candidate(settings: JobSettings, choice: CandidateChoice = "student") -> Candidate:
    """Read evaluation, tile manifest and candidate (with a student its sweep), and check that they belong together.

    Args:
        choice: see ``promotion.candidate``.

    Raises:
        DataError: a stage before has not finished, or the evaluation scored no joint model and it is to stand.
        ConflictError, IntegrityError: its results are of other tiles or another model.
    """
    url = settings.place("evaluation")
    evaluation = _stage(url, "evaluation.json", "evaluate")
    tiles = _stage(settings.place("tiles"), "manifest.json", "prepare")
    if tiles["digest"] != evaluation["tiles_digest"]:
        raise ConflictError(
            f"{settings.place('tiles')}: tiles {tiles['digest'][:16]}; the evaluation used "
            f"{evaluation['tiles_digest'][:16]}; mend paths.tiles or run jobs/evaluate.py again"
        )
    record = _chosen(evaluation, url, choice)
    take = _joint_model if record["arm"] == JOINT_MODEL else _student
    where, package, found = take(settings, evaluation, tiles, record)
    name = record["id"]
    if found.pop("digest") != evaluation["students"][name]:
        raise IntegrityError(
            f"{where}: this is not the model that the evaluation scored as {name}, "
            f"{evaluation['students'][name][:16]}; run jobs/evaluate.py again, to another place"
        )
    with np.load(io.BytesIO(storage.read_bytes(storage.join(url, "confusion.npz")))) as arrays:
        confusion, groups = arrays[name], arrays["groups"]
    cost = {"num_parameters": package.num_parameters, "evaluations": package.evaluations}
    return Candidate(
        {**record, **found.pop("network")},
        where,
        package,
        {**package.metadata(), "tiles_digest": tiles["digest"], **found},
        cost | _latency(url, name, evaluation["students"][name]),
        confusion,
        groups,
        dict(evaluation["test"]),
    )


def _chosen(evaluation: Mapping[str, Any], url: str, choice: CandidateChoice) -> dict[str, Any]:
    """The record of the candidate, with its arm; by mIoU on val where two stand."""
    arm, name = evaluation["candidate"]["arm"], evaluation["candidate"]["id"]
    students = evaluation["arms"][arm]["students"]
    student = next(({**item, "arm": arm} for item in students if item["id"] == name), None)
    if student is None:
        raise IntegrityError(f"{url}/evaluation.json: candidate {name!r} is not a student of arm {arm!r}")
    if choice == "student":
        return student
    if JOINT_MODEL not in evaluation["arms"]:
        raise DataError(
            f"{url}: it scored no joint model, and promotion.candidate is {choice}; expected one: evaluate a model "
            "trained with diffusion.mode independent with evaluate.joint_model true, or set promotion.candidate student"
        )
    joint = {**evaluation["arms"][JOINT_MODEL]["students"][0], "arm": JOINT_MODEL}
    return student if choice == "best" and student["val_miou"] >= joint["val_miou"] else joint


# (folder, package, {"digest" as scored, "network" in words, digests of what it was made from})
_Taken = tuple[str, Packaged, dict[str, Any]]


def _student(
    settings: JobSettings, evaluation: Mapping[str, Any], tiles: Mapping[str, Any], record: Mapping[str, Any]
) -> _Taken:
    sweep = _stage(settings.place("sweep"), "sweep.json", "distill")
    where = storage.join(settings.place("sweep"), record["path"])
    student = load_student(where)
    package = student_package(student, tiles, evaluation["class_names"], _temperature(record))
    network = {"architecture": student.config.architecture, "encoder": student.config.encoder}
    made_from = {key: sweep[key] for key in ("corpus_digest", "model_digest", "labelled_digest") if sweep.get(key)}
    found = {"digest": student.digest, "network": network, "student_digest": student.digest, **made_from}
    return where, package, found


def _joint_model(
    settings: JobSettings, evaluation: Mapping[str, Any], tiles: Mapping[str, Any], record: Mapping[str, Any]
) -> _Taken:
    where = settings.place("model")
    how = {"evaluations": record["evaluations"], "seed": record["noise_seed"]}
    joint = open_joint_model(where, tiles, evaluation["class_names"], **how)
    if joint is None:
        raise IntegrityError(
            f"{where}: a model trained with diffusion.mode joint; the evaluation scored one of mode independent. Run "
            "jobs/evaluate.py again, to another place"
        )
    found = {"digest": joint.digest, "network": {}, "model_digest": joint.model_digest}
    return where, joint.package(_temperature(record)), found


def _temperature(record: Mapping[str, Any]) -> float:
    return float(record.get("temperature") or 1.0)


def _latency(url: str, name: str, digest: str) -> dict[str, Any]:
    """What the evaluation at ``url`` measured of this very model; empty if nothing."""
    try:
        told = storage.read_json(storage.join(url, "latency.json"))
    except FileNotFoundError:
        return {}
    found = told["models"].get(name)
    if found is None or found["digest"] != digest:
        return {}
    return {"latency_ms": found["ms"], "latency_on": f"{told['hardware']}; one image of {told['size_px']} px squared"}


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
