"""What the tracking server is told of a sweep: a nested run for every trial and every final student."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dakter.data.tiles import TilesManifest
from dakter.progress import Progress
from dakter.report.grids import predictions_figure
from dakter.students.search import Arm
from dakter.tracking import TrackedRun, Tracker
from jobs._redone import total
from jobs._sweep import METRIC, SweepData, read_preview


@dataclass
class Book:
    """The runs of one sweep, written by the driver alone, so that trials wait for no database."""

    tracker: Tracker
    sweep_id: str
    parent: str
    folder: str
    data: SweepData
    manifest: TilesManifest
    identity: Mapping[str, Any]
    tiles_url: str
    inputs: Sequence[tuple[str, str, str]]  # name, URL and digest of each corpus of the distilled arm

    def run(self, name: str, arm: str, kind: str) -> TrackedRun:
        """The nested run of a trial or student, found again after a restart, with its lineage."""
        keys = ("tiles_digest", "corpus_digest", "model_digest", "accept_digest", "labelled_digest")
        digests = {key: str(self.identity[key]) for key in keys if self.identity.get(key)}
        run = self.tracker.run(
            f"{self.sweep_id}/{name}",
            name=name,
            parent=self.parent,
            tags={"dakter.arm": arm, "dakter.kind": kind, **{f"dakter.{key}": value for key, value in digests.items()}},
        )
        run.dataset("tiles", self.tiles_url, self.identity["tiles_digest"], "train")
        if arm == "distilled":
            for corpus in self.inputs:
                run.dataset(*corpus, "distillation")
        return run

    def arm(self, arm: Arm, progress: Progress) -> ArmBook:
        """The runs of one arm's trials."""
        return ArmBook(self, arm, progress)

    def final(self, name: str, stored: Mapping[str, Any]) -> dict[str, Any]:
        """Record a final student; returns its row of ``sweep.json``."""
        record = stored["record"]
        run = self.run(name, record["arm"], "student")
        run.params({**stored["config"], "seed": record["seed"]})
        for row in record["history"]:
            run.metrics({"loss": row["loss"], "val_miou": row["val_miou"]}, step=int(row["step"]))
        run.metrics({METRIC: record["val_miou"]}, step=record["steps"])
        run.document(dict(stored), "student.json")
        self.picture(run, name)
        run.end()
        keys = ("id", "seed", "val_miou", "val_iou", "best_step", "steps", "seconds", "epochs", "history")
        return {
            **{key: record[key] for key in keys},
            **total(record),
            "path": f"students/{name}",
            "architecture": stored["config"]["architecture"],
            "encoder": stored["config"]["encoder"],
            "num_parameters": stored["num_parameters"],
            "digest": stored["digest"],
            "run_id": run.id,
        }

    def picture(self, run: TrackedRun, name: str) -> None:
        """Figure of predictions on val, if there are any."""
        predictions = read_preview(self.folder, name)
        if predictions is not None:
            shown = self.data.preview_rows()
            table = self.manifest.class_table
            figure = predictions_figure(
                self.data.val.images[shown], self.data.val.labels[shown], predictions, table.colours
            )
            run.figure(figure, "predictions.png")


@dataclass
class ArmBook:
    """Hears of the trials of one arm (see ``jobs._sweep.Live``)."""

    book: Book
    arm: Arm
    progress: Progress
    _runs: dict[str, TrackedRun] = field(default_factory=dict)

    def _run(self, trial_id: str) -> TrackedRun:
        if trial_id not in self._runs:
            self._runs[trial_id] = self.book.run(f"{self.arm}-{trial_id}", self.arm, "trial")
        return self._runs[trial_id]

    def started(self, trial_id: str, params: dict[str, Any]) -> None:
        """A trial starts, or starts over."""
        self._run(trial_id).params({key.replace(" ", "_"): value for key, value in params.items()})

    def result(self, trial_id: str, result: dict[str, Any]) -> None:
        """A trial looked at val."""
        scores = {key: result[key] for key in ("loss", "val_miou", METRIC)}
        self._run(trial_id).metrics(scores, step=result["step"])

    def ended(self, trial_id: str, good: bool) -> None:
        """A trial is over: done, stopped early (both FINISHED) or failed."""
        run = self._run(trial_id)
        self.book.picture(run, f"{self.arm}-{trial_id}")
        run.end("FINISHED" if good else "FAILED")
        self.progress.advance()
