"""Score students, and the joint model's own p(y | x), on the test split, with intervals; the only reader of test.

The joint model is scored as the package that promotion would register (``evaluate.joint_model``), and left out where it
was trained in mode joint, which has no such p(y | x). Its arm is ``joint-model``.

Writes ``confusion.npz`` (a student's id -> int64 ``(N, K, K)`` pixels an image, rows true class; ``groups`` ``(N,)``),
``proper_scores.npz`` (id -> ``(N, 3)`` summed NLL, summed Brier score, labelled pixels) and last ``evaluation.json``.
What was measured on this machine alone, and would come out differently the next time, stands apart in ``latency.json``:
median milliseconds an image of each packaged model.

Every set of models that is scored on a test split is counted once, by an object below ``<tiles>/test_uses``.
"""

from __future__ import annotations

import datetime
import io
import logging
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import torch

from dakter import storage
from dakter.config import digest_json
from dakter.corpus.reader import CorpusReader
from dakter.data.tiles import Split, TileCorpus, read_test
from dakter.errors import ConflictError, DataError, IntegrityError, listing
from dakter.evaluate import images, scores
from dakter.evaluate.bootstrap import Resampling
from dakter.evaluate.settings import EvaluateConfig
from dakter.evaluate.summary import JOINT_MODEL, ScoredStudent, summarise
from dakter.metrics import miou
from dakter.packaging import Packaged
from dakter.progress import Progress
from dakter.students.models import predict
from dakter.students.store import load_student
from jobs._cli import Job, JobSettings, Plan, Stop, main
from jobs._hardware import measured_on, median_ms
from jobs._packages import JointModel, open_joint_model, predict_raw, raw_values, student_package

P = TypeVar("P", bound=Packaged)
log = logging.getLogger("dakter.jobs.evaluate")


class EvaluateSettings(JobSettings):
    """Sections that evaluation reads."""

    evaluate: EvaluateConfig = EvaluateConfig()


def run(settings: EvaluateSettings, stop: Stop) -> dict[str, Any]:
    """Score the sweep and the joint model, or say that it is done; another evaluation at this place is refused."""
    url, config = settings.place("evaluation"), settings.evaluate
    sweep, tiles = read_sweep(settings.place("sweep")), TileCorpus.open(settings.place("tiles"))
    if sweep["tiles_digest"] != tiles.manifest.digest:
        raise ConflictError(
            f"{settings.place('sweep')}: its students learned from tiles {sweep['tiles_digest'][:16]}; expected "
            f"{tiles.manifest.digest[:16]}, those of {tiles.url}. Mend paths.tiles or paths.sweep, or run "
            "jobs/distill.py again"
        )
    scored = _scored_before(url, settings)
    joint = None if scored else joint_model(settings, tiles)
    identity = _identity(sweep, config, joint.digest if joint else scored)
    standing = _standing(url, identity)
    if standing is not None:
        return {"already_done": True, **_figures(standing)}

    names = tiles.manifest.class_table.names
    test = _test_split(tiles)
    uses = count_use(tiles, {"students": identity["students"]})
    arms: dict[str, list[ScoredStudent]] = {}
    latency: dict[str, dict[str, Any]] = {}
    progress = Progress(log, "evaluate", len(identity["students"]), "models")

    def done(arm: str, scored: ScoredStudent, package: Packaged) -> None:
        name = scored.record["id"]
        arms.setdefault(arm, []).append(scored)
        if config.latency_runs:
            ms = median_ms(package, tiles.manifest.tile_px, config.latency_runs)
            latency[name] = {"digest": identity["students"][name], "ms": ms}
        progress.advance(note=f"{name}: mIoU {100 * miou(scored.scores.confusions.sum(axis=0)):.1f} %")

    for arm, entry in sweep["arms"].items():
        for record in entry["students"]:
            stop.check("no score is kept")
            done(arm, *score_student(settings, record, tiles, test))
    if joint is not None:
        stop.check("no score is kept")
        done(JOINT_MODEL, *score_joint_model(settings, joint, tiles, test))
    evaluation = {
        **identity,
        **summarise(arms, test.groups, names, Resampling(config.num_resamples, config.seed, config.level)),
        "tiles_digest": tiles.manifest.digest,
        "class_names": list(names),
        "test": {
            "digest": tiles.manifest.split_digests["test"],
            "num_images": len(test.images),
            "num_groups": len(np.unique(test.groups)),
            "uses": uses,
        },
        "images": image_statistics(settings, tiles),
    }
    students = [student for arm in arms.values() for student in arm]
    _put_arrays(
        storage.join(url, "confusion.npz"), {s.record["id"]: s.scores.confusions for s in students}, test.groups
    )
    _put_arrays(
        storage.join(url, "proper_scores.npz"), {s.record["id"]: s.scores.proper for s in students}, test.groups
    )
    if latency:
        told = {"hardware": measured_on(), "size_px": tiles.manifest.tile_px, "runs": config.latency_runs}
        storage.put_json(storage.join(url, "latency.json"), {**told, "models": latency})
    storage.put_json(storage.join(url, "evaluation.json"), evaluation)
    return _figures(evaluation)


def read_sweep(url: str) -> dict[str, Any]:
    """``sweep.json``; raises DataError if there is none."""
    try:
        return dict(storage.read_json(storage.join(url, "sweep.json")))
    except FileNotFoundError:
        raise DataError(
            f"{url}: no finished sweep (no sweep.json); run jobs/distill.py first, or mend paths.sweep"
        ) from None


def joint_model(settings: EvaluateSettings, tiles: TileCorpus) -> JointModel | None:
    """The joint model, to be scored; None, with a line in the log, if it is not wanted or cannot say p(y | x).

    Raises as ``open_joint_model``.
    """
    config, url = settings.evaluate, settings.place("model")
    if not config.joint_model:
        log.info("the joint model is left out, as evaluate.joint_model says")
        return None
    joint = open_joint_model(
        url,
        tiles.manifest.to_json(),
        tiles.manifest.class_table.names,
        evaluations=config.joint_evaluations,
        seed=config.seed,
    )
    if joint is None:
        log.info("the joint model is left out: %s was trained with diffusion.mode joint, which has no p(y | x)", url)
    return joint


def score_student(
    settings: EvaluateSettings, record: Mapping[str, Any], tiles: TileCorpus, test: Split
) -> tuple[ScoredStudent, Packaged]:
    """Fit a student's temperature on val, then score it on test; returns its package too, where it was scored.

    Raises:
        IntegrityError: the student at its path is not the one that the sweep recorded.
    """
    where = storage.join(settings.place("sweep"), record["path"])
    student = load_student(where)
    if student.digest != record["digest"]:
        raise IntegrityError(
            f"{where}: student {student.digest[:16]}; sweep.json recorded {record['digest'][:16]}. It was replaced "
            "after the sweep: run jobs/distill.py again, to another place"
        )
    package = _placed(student_package(student, tiles.manifest.to_json(), tiles.manifest.class_table.names, 1.0))
    found, _ = _scores(settings, lambda stored: predict(student.model, stored), tiles, tiles.read("val"), test)
    cost = {"num_parameters": package.num_parameters, "evaluations": package.evaluations}
    return ScoredStudent({**record, **cost}, found), package


def score_joint_model(
    settings: EvaluateSettings, joint: JointModel, tiles: TileCorpus, test: Split
) -> tuple[ScoredStudent, Packaged]:
    """``score_student`` of the joint model: its package is scored, from raw values; its mIoU on val is taken here."""
    package, val = _placed(joint.package(1.0)), tiles.read("val")

    def probabilities(stored: np.ndarray) -> np.ndarray:
        return predict_raw(package, raw_values(stored, tiles.manifest.value_range))

    on_test, on_val = _scores(settings, probabilities, tiles, val, test)
    record = {
        "id": JOINT_MODEL,
        "architecture": type(package.network).__name__,
        "num_parameters": package.num_parameters,
        "evaluations": package.evaluations,
        "noise_seed": package.seed,
        "val_miou": miou(on_val.sum(axis=0)),
        "digest": joint.digest,
        "model_digest": joint.model_digest,
    }
    return ScoredStudent(record, on_test), package


def _placed(package: P) -> P:
    return package.to("cuda" if torch.cuda.is_available() else "cpu")


def _scores(
    settings: EvaluateSettings, probabilities: scores.Predict, tiles: TileCorpus, val: Split, test: Split
) -> tuple[scores.Scores, np.ndarray]:
    """Scores on test of a model from stored images to probabilities, calibrated on val, and its confusions on val."""
    config, num_classes = settings.evaluate, len(tiles.manifest.class_table)
    temperature, on_val = scores.calibrated_on(
        probabilities,
        val.images,
        val.labels,
        num_classes=num_classes,
        chunk=config.chunk,
        num_pixels=config.temperature_pixels,
        seed=config.seed,
    )
    on_test = scores.score(
        probabilities,
        test.images,
        test.labels,
        num_classes=num_classes,
        temperature=temperature,
        chunk=config.chunk,
    )
    return on_test, on_val


def confusion_of(
    predict_raw: scores.Predict, settings: JobSettings, *, model: str = "champion"
) -> tuple[np.ndarray, np.ndarray]:
    """Score a model from elsewhere, such as a registered champion, on the frozen test split.

    Args:
        predict_raw: raw images float32 ``(B, C, H, W)`` in the manifest's ``value_range`` to probabilities float32
            ``(B, K, H, W)``.
        settings: say where the tiles are.
        model: what is scored, by digest if it has one: its use of the test split is counted under this name.

    Returns:
        int64 ``(N, K, K)`` pixels an image (rows true class), and the group of each image ``(N,)``.
    """
    tiles = TileCorpus.open(settings.place("tiles"))
    test = _test_split(tiles)
    count_use(tiles, {"model": model})
    found = scores.confusions(
        lambda stored: predict_raw(raw_values(stored, tiles.manifest.value_range)),
        test.images,
        test.labels,
        num_classes=len(tiles.manifest.class_table),
        chunk=EvaluateConfig().chunk,
    )
    return found, test.groups


def count_use(tiles: TileCorpus, what: Mapping[str, Any]) -> int:
    """Note that ``what`` is scored on the test split, once however often it is repeated; returns how many were."""
    identity = {"tiles_digest": tiles.manifest.digest, **what}
    folder = storage.join(tiles.url, "test_uses")
    note = {**identity, "first": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}
    try:
        storage.put_json_new(storage.join(folder, f"{digest_json(identity)}.json"), note)
    except FileExistsError:
        log.info("this has been scored on the test split before; it counts once")
    return len(storage.sizes(folder))


def image_statistics(settings: EvaluateSettings, tiles: TileCorpus) -> dict[str, Any] | None:
    """Generated images beside real ones of train and val, never test; None without a corpus or if not asked for."""
    most, url = settings.evaluate.num_images, settings.place("corpus")
    if not most or not storage.exists(storage.join(url, "identity.json")):
        return None
    reader = CorpusReader(url)
    pairs, count = [], 0
    for shard in reader.shards:
        if count >= most:
            break
        pairs.append(reader.read_shard(shard))
        count += len(pairs[-1][0])
    if not pairs:
        return None
    generated, soft = (np.concatenate(part)[:most] for part in zip(*pairs, strict=True))
    real = [_evenly(tiles.read(split), most) for split in ("train", "val")]
    drawn = (generated, soft.argmax(axis=1).astype(np.uint8))
    return images.compare(real[0], real[1], drawn, tiles.manifest.class_table.names)


def _test_split(tiles: TileCorpus) -> Split:
    test = read_test(tiles)
    if not len(test.images):
        raise DataError(f"{tiles.url}: its test split is empty; expected images: run jobs/prepare.py with some")
    return test


# Settings that change no score, or only which joint model is scored, whose digest tells that.
_NOT_HOW = ("chunk", "latency_runs", "joint_model", "joint_evaluations")


def _scored_before(url: str, settings: EvaluateSettings) -> str | None:
    """Digest of the joint model that the evaluation at ``url`` scored, asked as it would be now, if that model is gone.

    What is done stays done when the model is removed to save space.
    """
    config = settings.evaluate
    if not config.joint_model or storage.exists(storage.join(settings.place("model"), "model.json")):
        return None
    try:
        arms = storage.read_json(storage.join(url, "evaluation.json"))["arms"]
    except FileNotFoundError:
        return None
    how = {"evaluations": config.joint_evaluations, "noise_seed": config.seed}
    for record in arms.get(JOINT_MODEL, {}).get("students", ()):
        if all(record[key] == value for key, value in how.items()):
            return str(record["digest"])
    return None


def _identity(sweep: Mapping[str, Any], config: EvaluateConfig, joint: str | None) -> dict[str, Any]:
    """What makes an evaluation another one: the models (``students``, by id), the tiles, and how they are scored.

    An evaluation made before the joint model was scored is one without it. ``joint``: its digest, if it is scored.
    """
    students = {record["id"]: record["digest"] for arm in sweep["arms"].values() for record in arm["students"]}
    digest = digest_json({"tiles": sweep["tiles_digest"], "students": students})
    how = {key: value for key, value in config.dump().items() if key not in _NOT_HOW}
    models = students if joint is None else {**students, JOINT_MODEL: joint}
    return {"sweep_digest": digest, "students": models, "tiles_digest": sweep["tiles_digest"], "settings": how}


def _standing(url: str, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """The finished evaluation at ``url`` if it is this one, None if there is none; else ConflictError."""
    try:
        found: dict[str, Any] = storage.read_json(storage.join(url, "evaluation.json"))
    except FileNotFoundError:
        return None
    differences = []
    for key in ("tiles_digest", "settings", "students"):
        there, here = found.get(key), identity[key]
        if isinstance(there, dict) and isinstance(here, dict):
            differences += [
                f"{key} {name}: {there.get(name)} there, {here.get(name)} here"
                for name in sorted({*there, *here})
                if there.get(name) != here.get(name)
            ]
        elif there != here:
            differences.append(f"{key}: {there} there, {here} here")
    if differences:
        raise ConflictError(
            f"{url}: another evaluation stands here; it differs in\n{listing(differences)}\n"
            "Choose another paths.evaluation (or out), or remove it; without the joint model, as before there was one: "
            "evaluate.joint_model false"
        )
    return found


def _evenly(split: Split, most: int) -> tuple[np.ndarray, np.ndarray]:
    """At most ``most`` images and labels, spread over the split."""
    index = np.unique(np.linspace(0, len(split.images) - 1, most).astype(np.int64))
    return split.images[index], split.labels[index]


def _put_arrays(url: str, arrays: Mapping[str, np.ndarray], groups: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, groups=groups, **dict(arrays))
    storage.put(url, buffer.getvalue())


def _figures(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """What the stage record keeps."""
    return {
        "num_students": len(set(evaluation["students"]) - {JOINT_MODEL}),
        "num_test_images": evaluation["test"]["num_images"],
        "test_uses": evaluation["test"]["uses"],
        "miou": {name: arm["miou"] for name, arm in evaluation["arms"].items()},
        "candidate": evaluation["candidate"]["id"],
    }


def plan(settings: EvaluateSettings) -> Plan:
    """For ``--dry-run``."""
    config = settings.evaluate
    return Plan(
        reads=[
            f"students {settings.place('sweep')}/sweep.json",
            f"val and test tiles {settings.place('tiles')} (the only reader of test)",
            f"corpus {settings.place('corpus')} (image statistics, if it is there)",
            *([f"joint model {settings.place('model')}"] if config.joint_model else []),
        ],
        computes=[
            "a temperature of each model on val, then its scores on test",
            f"intervals at {config.level:g} by {config.num_resamples} paired draws of near-duplicate groups and seeds",
        ],
        writes=[
            f"{settings.place('tiles')}/test_uses/<digest>.json (this use of the test split, counted once)",
            f"{settings.place('evaluation')}/confusion.npz, proper_scores.npz, latency.json and, last, evaluation.json",
        ],
    )


JOB = Job("evaluate", __doc__ or "", EvaluateSettings, run, plan)

if __name__ == "__main__":
    from jobs.evaluate import JOB  # its importable self: classes in __main__ do not pickle for Ray

    raise SystemExit(main(JOB))
