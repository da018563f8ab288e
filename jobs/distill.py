"""Search, freeze, train again: students from real labels alone (the control) and from real and generated pairs.

The latter may have real unlabelled images with the joint model's labels beside generated pairs, or in place of them.

Both arms get the same number of trials on the same schedule, steered by val mIoU alone; the best settings of each are
frozen and trained afresh with several seeds. Test is never read here.
"""

from __future__ import annotations

import contextlib
import logging
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from dakter import config, storage
from dakter.config import load
from dakter.data.tiles import Split, TileCorpus
from dakter.errors import ConflictError, Stopped, listing
from dakter.progress import Progress, duration
from dakter.students import search, store
from dakter.students.mix import MixedStudentsConfig, check_rows
from dakter.students.models import StudentConfig
from dakter.students.search import ARMS, Arm, SweepConfig
from dakter.students.train import LabelledArrays
from dakter.tracking import TrackedRun, Tracker, TrackingConfig
from jobs._cli import Job, JobSettings, Plan, Stop, main
from jobs._context import current
from jobs._ray import RayConfig, beside_driver, session, wait_for_resources
from jobs._redone import Tally, total
from jobs._sources import Mix

log = logging.getLogger("dakter.jobs.distill")


class DistillSettings(JobSettings):
    """Settings of the distill job."""

    students: MixedStudentsConfig = MixedStudentsConfig()
    sweep: SweepConfig = SweepConfig()
    tracking: TrackingConfig = TrackingConfig()
    ray: RayConfig = RayConfig()


def plan(settings: DistillSettings) -> Plan:
    students, sweep, folder, paths = settings.students, settings.sweep, settings.place("sweep"), settings.paths
    share = students.share(with_labelled=paths.labelled is not None)
    accepted = f", the samples of {paths.accept} alone" if paths.accept else ""
    generated, labelled = f"{settings.place('corpus')}: every committed shard{accepted}", f"{paths.labelled}: likewise"
    return Plan(
        reads=[
            f"{settings.place('tiles')}: train and val",
            *([generated] if share < 1 else []),
            *([labelled] if paths.labelled else []),
        ],
        computes=[
            *([f"{share:g} of the rows that are no real labelled pairs from {paths.labelled}"] if share else []),
            f"{sweep.num_trials} trials of up to {students.steps} steps for each of {', '.join(ARMS)}",
            f"stopped early from step {sweep.grace_steps} on; {settings.ray.trial_workers} at a time",
            f"then {students.num_seeds} students of {students.steps} steps for each arm",
        ],
        writes=[
            f"{folder}/tune/<arm>: state of the search",
            f"{folder}/search-<arm>.json",
            f"{folder}/students/<arm>-seed<k>/",
            f"{folder}/sweep.json: last",
        ],
    )


def run(settings: DistillSettings, stop: Stop) -> Mapping[str, Any]:
    folder = settings.place("sweep")
    tiles, paths = TileCorpus.open(settings.place("tiles")), settings.paths
    mix = Mix.open(settings.place("corpus"), paths.accept, paths.labelled, settings.students, tiles)
    manifest = tiles.manifest
    lineage = {"tiles_digest": manifest.digest, **mix.identity()}
    identity = {**lineage, "students": mix.students(settings.students), "sweep": settings.sweep.dump()}
    sweep_id = _begin(folder, identity)
    finished = storage.join(folder, "sweep.json")
    if storage.exists(finished):
        return {**storage.read_json(finished)["figures"], "already_done": True}
    mix.check_samples()
    check_rows(mix.share, settings.sweep.synthetic_share, settings.students.batch_size)
    search.check(settings.sweep, settings.students, bands=len(manifest.bands), size_px=manifest.tile_px)
    storage.check_writable(folder)
    tracker = Tracker.open(settings.tracking, settings.out)
    parent = tracker.run(sweep_id, name="distill", tags={"dakter.stage": "distill"})
    parent.params({"students": settings.students.dump(), "sweep": settings.sweep.dump()})
    with _ended(parent), session(settings.ray) as ray:
        stop.install()
        needs, timeout_s = settings.ray.trial_needs, settings.ray.start_timeout_s
        wait_for_resources(ray, needs, 1, timeout_s=timeout_s, stop=stop, wish=settings.ray.trial_workers)
        from jobs._book import Book
        from jobs._sweep import Final, SweepData, Work, run_finals

        data = SweepData(
            _arrays(tiles.read("train")),
            _arrays(tiles.read("val")),
            len(manifest.class_table),
            mix.sources(settings.students.corpus_memory_mb),
        )
        reference, tally = ray.put(data), beside_driver(ray, Tally)
        gpu = settings.ray.trial_gpus > 0
        works = {
            arm: Work(
                reference,
                tally,
                settings.students,
                settings.sweep,
                arm,
                folder,
                settings.ray.trial_cpus,
                gpu,
                current(),
            )
            for arm in ARMS
        }
        book = Book(tracker, sweep_id, parent.id, folder, data, manifest, identity, tiles.url, mix.inputs())
        searches = {arm: _search(work, book, settings, stop) for arm, work in works.items()}
        facts = {
            **lineage,
            "class_names": list(manifest.class_table.names),
            "bands": list(manifest.bands),
            "value_range": list(manifest.value_range),
            "tile_px": manifest.tile_px,
        }
        finals = [
            Final(works[arm], load(StudentConfig, searches[arm]["best"]), number, facts)
            for number in range(settings.students.num_seeds)
            for arm in ARMS
        ]
        progress = Progress(log, "final students", len(finals), "students", every_s=5.0)
        rows: dict[str, dict[str, Any]] = {}

        def done(final: Final) -> None:
            record = store.read_record(final.url)
            assert record is not None
            rows[final.id] = book.final(final.id, record)
            progress.advance(note=f"{final.id} val mIoU {record['record']['val_miou']:.4f}")

        run_finals(finals, settings.ray, stop, done)
    arms: dict[str, dict[str, Any]] = {
        arm: {
            "best": searches[arm]["best"],
            "search": searches[arm]["search"],
            "students": [rows[final.id] for final in finals if final.work.arm == arm],
        }
        for arm in ARMS
    }
    figures = _figures(arms, {arm: searches[arm]["seconds"] for arm in ARMS}, len(data.train.images)) | mix.figures()
    if figures["num_restarts"]:
        log.info("distill: %(num_restarts)d lost workers; %(steps_redone)d steps were done again", figures)
    parent.metrics({f"{arm}/best_val_miou": arms[arm]["search"]["best_val_miou"] for arm in ARMS})
    parent.end()
    names = list(manifest.class_table.names)
    storage.put_json(finished, {**lineage, "class_names": names, "run_id": parent.id, "arms": arms, "figures": figures})
    return figures


def _begin(folder: str, identity: Mapping[str, Any]) -> str:
    """Claim the folder for these settings, or recognise them; returns the sweep's own id (of its tracked runs)."""
    where = storage.join(folder, "settings.json")
    with contextlib.suppress(FileExistsError):
        storage.put_json_new(where, {**identity, "sweep_id": f"distill-{uuid.uuid4().hex}"})
    standing = dict(storage.read_json(where))
    sweep_id = str(standing.pop("sweep_id"))
    differences = config.differences(identity, standing)
    if differences:
        raise ConflictError(
            f"{folder}: a sweep with other settings stands here:\n{listing(differences)}\n"
            "Go back to those settings, or choose another folder (paths.sweep)"
        )
    return sweep_id


@contextlib.contextmanager
def _ended(run: TrackedRun) -> Iterator[None]:
    """No run is left RUNNING by a failure or a stop; the same command sets it running again."""
    try:
        yield
    except BaseException as error:
        run.end("KILLED" if isinstance(error, Stopped | KeyboardInterrupt) else "FAILED")
        raise


def _arrays(split: Split) -> LabelledArrays:
    return LabelledArrays(split.images, split.labels)


def _search(work: Any, book: Any, settings: DistillSettings, stop: Stop) -> dict[str, Any]:
    """The search of one arm, kept in a file of its own once it is over."""
    from jobs._sweep import Live, run_trials

    arm: Arm = work.arm
    where = storage.join(work.folder, f"search-{arm}.json")
    if storage.exists(where):
        return dict(storage.read_json(where))
    stop.check("nothing was started")
    begin = time.monotonic()
    progress = Progress(log, f"trials of {arm}", settings.sweep.num_trials, "trials", every_s=5.0)
    entries = book.arm(arm, progress)
    trials = run_trials(work, settings.ray, Live(stop, entries.started, entries.result, entries.ended))
    best = max(trials, key=lambda row: row["val_miou"])
    seconds = time.monotonic() - begin
    found = {
        "best": best["config"],
        "search": {
            "num_trials": len(trials),
            "num_stopped_early": sum(row["stopped_early"] for row in trials),
            "best_val_miou": best["val_miou"],
            "trials": trials,
        },
        "seconds": round(seconds, 3),
    }
    storage.put_json(where, found)
    log.info(
        "%s: %d trials in %s, %d stopped early, best val mIoU %.4f (%s on %s)",
        arm,
        len(trials),
        duration(seconds),
        found["search"]["num_stopped_early"],
        best["val_miou"],
        best["config"]["architecture"],
        best["config"]["encoder"],
    )
    return found


def _figures(arms: Mapping[str, Any], seconds: Mapping[str, float], num_train: int) -> dict[str, Any]:
    figures: dict[str, Any] = {"num_train": num_train}
    students = [row for arm in arms.values() for row in arm["students"]]
    trials = [row for arm in arms.values() for row in arm["search"]["trials"]]
    for arm, found in arms.items():
        figures |= {
            f"num_trials_{arm}": found["search"]["num_trials"],
            f"num_stopped_early_{arm}": found["search"]["num_stopped_early"],
            f"best_val_miou_{arm}": found["search"]["best_val_miou"],
            f"val_miou_{arm}": float(np.mean([row["val_miou"] for row in found["students"]])),
            f"epochs_{arm}": found["students"][0]["epochs"],
            f"search_seconds_{arm}": seconds[arm],
            f"search_steps_{arm}": sum(row["steps"] for row in found["search"]["trials"]),
        }
    steps = sum(row["steps"] for row in students)
    return figures | {
        "num_students": len(students),
        "student_steps": steps,
        **total(*trials, *students),
        "student_steps_per_second": steps / sum(row["seconds"] for row in students),  # of one student, per worker
    }


JOB = Job(
    "distill",
    "Search, freeze and train students: real labels alone (the control) against real and generated pairs.",
    DistillSettings,
    run,
    plan,
)


if __name__ == "__main__":
    from jobs.distill import JOB  # its importable self: classes in __main__ do not pickle for Ray

    raise SystemExit(main(JOB))
