"""Score every student of a sweep on the test split, with intervals; the only reader of test in the project.

Writes ``confusion.npz`` (a student's id -> int64 ``(N, K, K)`` pixels an image, rows true class; ``groups`` ``(N,)``),
``proper_scores.npz`` (id -> ``(N, 3)`` summed NLL, summed Brier score, labelled pixels) and last ``evaluation.json``.
Every set of models that is scored on a test split is counted once, by an object below ``<tiles>/test_uses``.
"""

from __future__ import annotations

import datetime
import io
import logging
from collections.abc import Mapping
from typing import Any

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
from dakter.evaluate.summary import ScoredStudent, summarise
from dakter.metrics import miou
from dakter.progress import Progress
from dakter.students.models import predict
from dakter.students.store import load_student
from jobs._cli import Job, JobSettings, Plan, Stop, main

log = logging.getLogger("dakter.jobs.evaluate")


class EvaluateSettings(JobSettings):
    """Sections that evaluation reads."""

    evaluate: EvaluateConfig = EvaluateConfig()


def run(settings: EvaluateSettings, stop: Stop) -> dict[str, Any]:
    """Score the sweep, or say that it is done; another sweep's evaluation at this place is refused."""
    url, config = settings.place("evaluation"), settings.evaluate
    sweep, tiles = read_sweep(settings.place("sweep")), TileCorpus.open(settings.place("tiles"))
    if sweep["tiles_digest"] != tiles.manifest.digest:
        raise ConflictError(
            f"{settings.place('sweep')}: its students learned from tiles {sweep['tiles_digest'][:16]}; expected "
            f"{tiles.manifest.digest[:16]}, those of {tiles.url}. Mend paths.tiles or paths.sweep, or run "
            "jobs/distill.py again"
        )
    identity = _identity(sweep, config)
    standing = _standing(url, identity)
    if standing is not None:
        return {"already_done": True, **_figures(standing)}

    names = tiles.manifest.class_table.names
    test = _test_split(tiles)
    uses = count_use(tiles, {"students": identity["students"]})
    arms: dict[str, list[ScoredStudent]] = {}
    progress = Progress(log, "evaluate", len(identity["students"]), "students")
    for arm, entry in sweep["arms"].items():
        arms[arm] = []
        for record in entry["students"]:
            stop.check("no score is kept")
            arms[arm].append(score_student(settings, record, tiles, test))
            score = miou(arms[arm][-1].scores.confusions.sum(axis=0))
            progress.advance(note=f"{record['id']}: mIoU {100 * score:.1f} %")
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


def score_student(
    settings: EvaluateSettings, record: Mapping[str, Any], tiles: TileCorpus, test: Split
) -> ScoredStudent:
    """Fit a student's temperature on val, then score it on test.

    Raises:
        IntegrityError: the student at its path is not the one that the sweep recorded.
    """
    config, num_classes = settings.evaluate, len(tiles.manifest.class_table)
    where = storage.join(settings.place("sweep"), record["path"])
    student = load_student(where)
    if student.digest != record["digest"]:
        raise IntegrityError(
            f"{where}: student {student.digest[:16]}; sweep.json recorded {record['digest'][:16]}. It was replaced "
            "after the sweep: run jobs/distill.py again, to another place"
        )
    model = student.model.to("cuda" if torch.cuda.is_available() else "cpu")

    def probabilities(stored: np.ndarray) -> np.ndarray:
        return predict(model, stored)

    val = tiles.read("val")
    temperature = scores.temperature_on(
        probabilities,
        val.images,
        val.labels,
        num_classes=num_classes,
        chunk=config.chunk,
        num_pixels=config.temperature_pixels,
        seed=config.seed,
    )
    found = scores.score(
        probabilities,
        test.images,
        test.labels,
        num_classes=num_classes,
        temperature=temperature,
        chunk=config.chunk,
    )
    return ScoredStudent(record, found)


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
    low, high = tiles.manifest.value_range
    step = np.float32((high - low) / np.iinfo(test.images.dtype).max)
    found = scores.confusions(
        lambda stored: predict_raw(stored.astype(np.float32) * step + np.float32(low)),
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


def _identity(sweep: Mapping[str, Any], config: EvaluateConfig) -> dict[str, Any]:
    """What makes an evaluation another one: the students, the tiles, and how they are scored."""
    students = {record["id"]: record["digest"] for arm in sweep["arms"].values() for record in arm["students"]}
    how = {key: value for key, value in config.dump().items() if key != "chunk"}
    digest = digest_json({"tiles": sweep["tiles_digest"], "students": students})
    return {"sweep_digest": digest, "students": students, "tiles_digest": sweep["tiles_digest"], "settings": how}


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
            "Choose another paths.evaluation (or out), or remove it"
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
        "num_students": len(evaluation["students"]),
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
        ],
        computes=[
            "a temperature of each student on val, then its scores on test",
            f"intervals at {config.level:g} by {config.num_resamples} paired draws of near-duplicate groups and seeds",
        ],
        writes=[
            f"{settings.place('tiles')}/test_uses/<digest>.json (this use of the test split, counted once)",
            f"{settings.place('evaluation')}/confusion.npz, proper_scores.npz and, last, evaluation.json",
        ],
    )


JOB = Job("evaluate", __doc__ or "", EvaluateSettings, run, plan)

if __name__ == "__main__":
    from jobs.evaluate import JOB  # its importable self: classes in __main__ do not pickle for Ray

    raise SystemExit(main(JOB))
