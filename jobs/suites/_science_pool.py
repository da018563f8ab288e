"""Cells of suite ``science`` in several processes at a time, each after those that it stands on."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import torch

from jobs import _context
from jobs.suites._science_cells import Workshop
from jobs.suites._science_plan import Cell, Tier

log = logging.getLogger("dakter.jobs.benchmark")

_POLL_S = 1.0
_KINDS = ("data", "generator", "student", "images")  # what others wait for comes first


@dataclass(frozen=True)
class Done:
    """A finished cell."""

    cell: Cell
    figures: dict[str, Any]
    seconds: float


def in_processes(
    tier: Tier,
    folder: Path,
    open_cells: Sequence[Cell],
    workers: int,
    *,
    may_begin: Callable[[Cell], bool],
    should_stop: Callable[[], bool],
    recorded: Mapping[str, str],
) -> Iterator[Done]:
    """Do ``open_cells``, ``workers`` at a time; ends early, with cells left, once nothing more may begin.

    Args:
        may_begin: asked before a cell is begun; a cell refused is not asked for again.
        should_stop: asked every second; cells in hand are then stopped, generators at a checkpoint.
        recorded: of a Workshop.

    Raises:
        Exception: whatever a cell raised, after the others in hand have ended and been yielded.
    """
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    waiting = in_order(tier, open_cells)
    running: dict[Future[tuple[dict[str, Any], float]], Cell] = {}
    failed: BaseException | None = None
    arguments = (tier, folder, recorded, stop, max(1, (os.cpu_count() or 1) // workers), _context.current())
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=arguments) as pool:
        while running or (waiting and not stop.is_set()):
            if should_stop():
                stop.set()
            blocked = {cell.name for cell in (*waiting, *running.values())}
            for cell in list(waiting):
                if len(running) >= workers or stop.is_set():
                    break
                if blocked & set(cell.needs):
                    continue
                waiting.remove(cell)
                if may_begin(cell):
                    running[pool.submit(_work, cell)] = cell
            if not running:  # the rest waits for a cell that may not begin
                break
            for future in wait(running, timeout=_POLL_S, return_when=FIRST_COMPLETED).done:
                cell = running.pop(future)
                error = future.exception()
                if error is None:
                    figures, seconds = future.result()
                    log.info("science: %s done in %.0f s; %d wait", cell.name, seconds, len(waiting))
                    yield Done(cell, figures, seconds)
                elif failed is None:
                    failed = error
                    stop.set()
    if failed is not None:
        raise failed


def in_order(tier: Tier, open_cells: Sequence[Cell]) -> list[Cell]:
    """Kind by kind; generators seed by seed, students by architecture and then arm by arm, as the tier has them.

    So the first arm, which all others are compared with, has its students on every seed before the budget is spent.
    """

    def place(cell: Cell) -> tuple[int, int, int]:
        architecture = tier.architectures.index(cell.architecture) if cell.architecture else 0
        arm = tier.arms.index(cell.arm) if cell.arm in tier.arms else 0
        return _KINDS.index(cell.kind), architecture, arm

    return sorted(open_cells, key=place)  # stable


_workshop: Workshop


def _begin(
    tier: Tier, folder: Path, recorded: Mapping[str, str], stop: Event, threads: int, context: _context.RunContext
) -> None:
    global _workshop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the parent alone decides
    _context.enter(context)
    torch.set_num_threads(threads)
    _workshop = Workshop(tier, folder, stop.is_set, recorded)


def _work(cell: Cell) -> tuple[dict[str, Any], float]:
    start = time.monotonic()
    return _workshop.run(cell), time.monotonic() - start
