"""Suite ``science``: what students gain from generated pairs and soft labels, arm by arm, in resumable cells.

Each cell (a labelled subset, a generator, a student, what a generator's images are like) leaves one record,
``<results>/science/<tier>/<cell>.json``; a cell with a record is not done again, nor is what stands below ``--out``:
``--science.cells 'images-*'`` measures the images of generators trained before. ``--report`` merges the records into
``<results>/science/<tier>.md``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dakter import storage
from dakter.config import differences
from dakter.errors import ConfigError, ConflictError, Stopped
from dakter.progress import duration
from jobs._cli import Plan, Stop
from jobs.suites._science_cells import Workshop
from jobs.suites._science_identity import identity
from jobs.suites._science_page import write_page
from jobs.suites._science_plan import TIERS, Cell, Tier, cells, select
from jobs.suites._science_pool import Done, in_processes
from jobs.suites._science_settings import ScienceConfig

log = logging.getLogger("dakter.jobs.benchmark")

_LONGEST = 1.25  # a cell may take this much longer than the longest of its kind so far


def run(settings: Any, stop: Stop, provenance: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Do the cells asked for, or write the page.

    Args:
        settings: of the benchmark job.
        stop: asked between cells and inside them.
        provenance: date, commit, hardware and command of a record.

    Raises:
        ConfigError: no such tier, no cell of such a name, or no data.
        ConflictError: a record was made with other settings, or with other images.
        Stopped: asked to stop, or the budget is spent; finished cells and checkpoints are kept.
    """
    tier = _tier(settings.tier) if settings.report else resolved(settings.tier, settings.science)
    records = Records(storage.join(settings.results, "science", settings.tier), tier, provenance)
    if settings.report:
        page = write_page(settings.tier, tier, records.finished(cells(tier)), storage.join(settings.results, "science"))
        return {"page": page}
    chosen = select(cells(tier), settings.science.cells)
    open_cells = [cell for cell in chosen if records.read(cell) is None]
    figures = {"records": records.url, "num_cells": len(chosen), "num_open": 0}
    if not open_cells:
        return {**figures, "already_done": True}
    deadline = Deadline(settings.science.budget_minutes)
    folder = Path(storage.local_path(storage.join(settings.out, f"science-{settings.tier}")))
    left = len(open_cells)
    recorded = records.digests(chosen)

    def may_begin(cell: Cell) -> bool:
        needed = 0.0 if cell.kind == "generator" else records.longest(cell) * _LONGEST  # a generator is resumed
        if deadline.left() > needed:
            return True
        log.warning(
            "science: the budget has %s left, too little for %s", duration(max(0.0, deadline.left())), cell.name
        )
        return False

    for done in _in_turn(tier, folder, open_cells, settings.science.workers, may_begin, stop, deadline, recorded):
        records.write(done.cell, done.figures, done.seconds)
        left -= 1
    if left:
        raise Stopped(f"{left} of {len(chosen)} cells are left; the same command goes on")
    return figures


def _in_turn(
    tier: Tier,
    folder: Path,
    open_cells: list[Cell],
    workers: int,
    may_begin: Callable[[Cell], bool],
    stop: Stop,
    deadline: Deadline,
    recorded: Mapping[str, str],
) -> Iterator[Done]:
    """Finished cells as they come, in this process or in several."""

    def should_stop() -> bool:
        return stop() or deadline.passed()

    if workers > 1:
        yield from in_processes(
            tier, folder, open_cells, workers, may_begin=may_begin, should_stop=should_stop, recorded=recorded
        )
        return
    workshop = Workshop(tier, folder, should_stop, recorded)
    for number, cell in enumerate(open_cells):
        stop.check(f"{len(open_cells) - number} cells are left")
        if not may_begin(cell):
            return
        log.info("science: %s (%d of %d)", cell.name, number + 1, len(open_cells))
        start = time.monotonic()
        found = workshop.run(cell)
        yield Done(cell, found, time.monotonic() - start)


def plan(settings: Any) -> Plan:
    """For --dry-run: every cell asked for, done or not."""
    tier = resolved(settings.tier, settings.science)
    url = storage.join(settings.results, "science", settings.tier)
    names = [cell.name for cell in select(cells(tier), settings.science.cells)]
    return Plan(
        reads=[] if tier.data.source == "simulate" else [str(tier.data.root), str(tier.data.unlabelled_root)],
        computes=[f"{name}{' (done)' if storage.exists(storage.join(url, f'{name}.json')) else ''}" for name in names],
        writes=[f"{url}/<cell>.json", f"{url}.md with report", f"working files below {settings.out}"],
    )


def _tier(name: str) -> Tier:
    if name not in TIERS:
        raise ConfigError(f"tier {name!r} of suite science; expected one of {', '.join(TIERS)} (--tier headline)")
    return TIERS[name]


def resolved(name: str, config: ScienceConfig) -> Tier:
    """A tier with the places of its data. Raises ConfigError for an unknown tier, or if no data is named."""
    tier = _tier(name)
    if tier.data.source == "simulate":
        return tier
    root, unlabelled = config.roots()
    return replace(tier, data=tier.data.model_copy(update={"root": root, "unlabelled_root": unlabelled}))


@dataclass
class Deadline:
    """``minutes`` from now; None: never."""

    minutes: float | None

    def __post_init__(self) -> None:
        self._start = time.monotonic()

    def left(self) -> float:
        """Seconds left; negative when passed."""
        return float("inf") if self.minutes is None else 60 * self.minutes - (time.monotonic() - self._start)

    def passed(self) -> bool:
        return self.left() <= 0


class Records:
    """The records of a tier: one JSON document a cell, written when the cell is done."""

    def __init__(self, url: str, tier: Tier, provenance: Callable[[], dict[str, Any]]):
        self.url, self.tier, self._provenance = url, tier, provenance
        self._seconds: dict[str, float] = {}

    def read(self, cell: Cell) -> dict[str, Any] | None:
        """The record of a cell, None if it is open. Raises ConflictError if it was made with other settings."""
        where = storage.join(self.url, f"{cell.name}.json")
        try:
            record = dict(storage.read_json(where))
        except FileNotFoundError:
            return None
        different = differences(identity(self.tier, cell), record["identity"])
        if different:
            raise ConflictError(
                f"{where}: a record with other settings; remove it, or choose other --results: " + "; ".join(different)
            )
        self._note(cell, float(record["seconds"]))
        return record

    def finished(self, everything: list[Cell]) -> Mapping[str, dict[str, Any]]:
        """Name -> record of every cell that is done."""
        found = {cell.name: self.read(cell) for cell in everything}
        return {name: record for name, record in found.items() if record is not None}

    def digests(self, everything: list[Cell]) -> dict[str, str]:
        """Data cell -> digest of its tiles, of those that have a record."""
        done = self.finished([cell for cell in everything if cell.kind == "data"])
        return {name: str(record["figures"]["digest"]) for name, record in done.items()}

    def longest(self, cell: Cell) -> float:
        """Seconds of the longest cell of this kind (and architecture) so far; 0 if none is known."""
        return self._seconds.get(_class(cell), 0.0)

    def write(self, cell: Cell, figures: dict[str, Any], seconds: float) -> None:
        self._note(cell, seconds)
        record = {
            "identity": identity(self.tier, cell),
            "seconds": round(seconds, 1),
            "figures": figures,
            **self._provenance(),
        }
        storage.put_json(storage.join(self.url, f"{cell.name}.json"), record)

    def _note(self, cell: Cell, seconds: float) -> None:
        self._seconds[_class(cell)] = max(self._seconds.get(_class(cell), 0.0), seconds)


def _class(cell: Cell) -> str:
    return f"{cell.kind} {'/'.join(cell.architecture or ())}"
