"""Generating actors on Ray Data: each draws whole shards, commits them itself, and returns one row a shard."""

from __future__ import annotations

import json
import logging
import os
import queue
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from dakter.corpus.budget import BudgetConfig
from dakter.corpus.commit import read_commit, set_aside, write_shard
from dakter.corpus.layout import Layout
from dakter.corpus.ledger import RunRecord, Working
from dakter.corpus.pack import Packed, make
from dakter.corpus.quote import stored_bytes
from dakter.corpus.shard import PairSampler
from dakter.errors import ConflictError, DakterError, Stopped, StorageError, of_environment
from jobs._context import RunContext, enter
from jobs._desk import Desk
from jobs._ray import RayConfig, ResourceDeadline, beside_driver, draining

log = logging.getLogger("dakter.jobs.generate")
T = TypeVar("T")

# Makes the sampler; called once in the driver and once in each actor, so it must pickle.
SamplerFactory = Callable[[], PairSampler]
_BEAT_S = 1.0  # each costs the cores of a small machine some milliseconds
# A shard in hand on a node that leaves is given up so long before: time to tell the desk.
_MARGIN_S = 5.0


@dataclass(frozen=True)
class Work:
    """What every actor is told."""

    corpus: str
    identity_digest: str
    shards: tuple[int, ...]
    max_attempts: int
    patience_s: float
    context: RunContext
    cpus: int
    facts: dict[str, Any]  # device and versions, for the commit records


@dataclass(frozen=True)
class Row:
    """What became of a shard: ``written``, ``stood``, ``failed`` or ``stopped``; its seconds and stored bytes."""

    shard: int
    outcome: str
    bytes: int = 0


class GivenBack(DakterError):
    """The node leaves before the shard in hand can be finished; another actor makes it."""


@dataclass(frozen=True)
class _Hand:
    """A shard in an actor's hands: its attempt within this run, when it was begun (monotonic), its record."""

    shard: int
    attempt: int
    since: float
    working: Working


# A shard that is drawn: what packs the rest of it, and the seconds that drawing took.
_Drawn = tuple[_Hand, Callable[[], Packed], float]


class ShardActor:
    """Ray Data calls it with row numbers of ``work.shards``; see ``fan_out``.

    Two calls go on at a time: while one shard is being stored the next is drawn. Drawing is one shard's at a time, in
    one thread, so that a sampler sees neither a second caller nor a second thread.
    """

    def __init__(self, factory: SamplerFactory, work: Work, desk: Any):
        import ray

        enter(work.context)
        self._work, self._desk = work, desk
        self._node = ray.get_runtime_context().get_node_id()
        self._last_beat, self._until = 0.0, float("inf")
        self._hands: dict[int, _Hand] = {}
        self._counted_to = time.monotonic()  # the time that commit records account for so far
        self._drawing = ThreadPoolExecutor(1, thread_name_prefix="dakter-draw")
        self._pool = ThreadPoolExecutor(work.cpus, thread_name_prefix="dakter-encode")
        self._layout = self._outlast(lambda: Layout.open(work.corpus))
        if self._layout.digest != work.identity_digest:
            raise ConflictError(f"{work.corpus}: the identity changed after the driver read it; start the job again")
        self._sampler = self._outlast(factory)
        if json.loads(json.dumps(self._sampler.identity)) != self._layout.identity["sampler"]:
            raise ConflictError(
                f"{work.corpus}: the model changed while its corpus was being made; start the job again"
            )

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        rows = [self._unit(self._work.shards[int(number)]) for number in batch["id"]]
        return {
            "shard": np.array([row.shard for row in rows]),
            "outcome": np.array([row.outcome for row in rows]),
            "bytes": np.array([row.bytes for row in rows]),
        }

    def _unit(self, shard: int) -> Row:
        while True:
            drawn = self._drawing.submit(self._draw, shard).result()
            row = self._store(*drawn) if isinstance(drawn, tuple) else drawn
            if row is not None:
                return row

    def _draw(self, shard: int) -> _Drawn | Row | None:
        """The shard, drawn; the row that ends it; or None: to be begun again."""
        order = self._told(self._desk.begin.remote(shard, self._node))
        if order.do == "stop":
            return Row(shard, "stopped")
        if order.do == "wait":  # on a node that leaves: Ray gives the shard to another actor when it is gone
            time.sleep(1.0)
            return None
        if order.attempt > self._work.max_attempts:
            return self._died(shard, order.attempt - 1)
        self._until = order.until
        working = Working(self._layout, f"{socket.gethostname()} pid {os.getpid()}")
        working.begin(shard, order.attempt)
        hand = _Hand(shard, order.attempt, time.monotonic(), working)
        self._hands[shard] = hand

        def drawn() -> _Drawn | Row:
            if self._outlast(lambda: read_commit(self._layout, shard)):
                return self._put_down(hand, Row(shard, "stood"))
            rest = self._outlast(lambda: make(self._layout, self._sampler, shard, self._beat, pool=self._pool))
            self._told(self._desk.drawn.remote(shard))
            return hand, rest, time.monotonic() - hand.since

        return self._step(hand, drawn)

    def _store(self, hand: _Hand, rest: Callable[[], Packed], drawing_s: float) -> Row | None:
        """The row that ends the shard; or None: to be begun again."""

        def facts() -> dict[str, Any]:  # asked for when the objects stand, just before the commit
            return {
                **self._work.facts,
                "cpus": os.cpu_count(),
                "sampling_s": round(drawing_s, 3),
                "worker_s": round(self._account(hand), 3),
                "committed_at": time.time(),
            }

        def stored() -> Row:
            packed = rest()
            outcome = self._outlast(lambda: write_shard(self._layout, hand.shard, packed, facts))
            size = stored_bytes(outcome.record) if outcome.written else 0
            return self._put_down(hand, Row(hand.shard, "written" if outcome.written else "stood", size))

        return self._step(hand, stored)

    def _account(self, hand: _Hand) -> float:
        """Seconds of this worker up to now that no record accounts for yet, since the shard was begun at the most."""
        now = time.monotonic()
        seconds = now - max(hand.since, self._counted_to)
        self._counted_to = now
        return max(0.0, seconds)

    def _put_down(self, hand: _Hand, row: T) -> T:
        """The shard leaves these hands: with the row that ends it, or None: to be begun again."""
        hand.working.end()
        del self._hands[hand.shard]
        if isinstance(row, Row):
            self._told(self._desk.end.remote(hand.shard, time.monotonic() - hand.since, row.bytes))
        return row

    def _step(self, hand: _Hand, what: Callable[[], T]) -> T | Row | None:
        """``what``, or what its failure makes of the shard: the row that ends it, or None: to be begun again."""
        try:
            return what()
        except Stopped:
            return self._put_down(hand, Row(hand.shard, "stopped"))
        except GivenBack as error:
            log.warning("shard %d: %s", hand.shard, error)
            self._told(self._desk.excuse.remote(hand.shard, str(error)))
            return self._put_down(hand, None)
        except Exception as error:  # whatever it is: the shard is tried again, then set aside; the rest goes on
            if of_environment(error):
                self._leave(hand.shard, error)
            return self._put_down(hand, self._failed(hand.shard, hand.attempt, error))

    def _failed(self, shard: int, attempt: int, error: Exception) -> Row | None:
        text, trace = f"{type(error).__name__}: {error}", traceback.format_exc()
        log.warning("shard %d, attempt %d of %d: %r", shard, attempt, self._work.max_attempts, error)
        self._told(self._desk.note.remote(shard, trace))
        if attempt < self._work.max_attempts:
            return None
        self._outlast(lambda: set_aside(self._layout, shard, attempts=attempt, error=text, traceback=trace))
        return Row(shard, "failed")

    def _died(self, shard: int, attempts: int) -> Row:
        error = "the worker's process died at every attempt (killed, out of memory or crashed)"
        last = self._told(self._desk.recall.remote(shard)) or error
        self._outlast(lambda: set_aside(self._layout, shard, attempts=attempts, error=error, traceback=last))
        return Row(shard, "failed")

    def _leave(self, shard: int, error: BaseException) -> None:
        """End this process: its surroundings stay bad, those of another may be good. Ray hands the shard on."""
        log.error(
            "shard %d: still failing after %g s (%s); this worker gives its place up",
            shard,
            self._work.patience_s,
            error,
        )
        self._told(self._desk.note.remote(shard, traceback.format_exc()))
        os._exit(1)

    def _outlast(self, what: Callable[[], T]) -> T:
        """Do ``what``, again and again while the store, the disk or the memory fails, for ``patience_s`` at most."""
        deadline, wait_s = time.monotonic() + self._work.patience_s, 1.0
        while True:
            try:
                return what()
            except Exception as error:
                if not of_environment(error) or time.monotonic() + wait_s > deadline:
                    raise
                log.warning("%s; again in %g s", error, wait_s)
                for _ in range(max(1, round(wait_s / _BEAT_S))):
                    self._beat()
                    time.sleep(_BEAT_S)
                wait_s = min(2 * wait_s, 30.0)

    def _beat(self) -> None:
        now = time.monotonic()
        if now - self._last_beat >= _BEAT_S:  # a remote call a micro-batch would cost more than a fast sampler
            self._last_beat = now
            order = self._told(self._desk.beat.remote(self._node))
            if order.do == "stop":
                raise Stopped("stopped as asked; the shard in hand is given up")
            self._until = order.until
            for hand in list(self._hands.values()):
                hand.working.beat()
        if time.time() > self._until - _MARGIN_S:
            raise GivenBack("the node leaves before this shard can be finished; given back")

    def _told(self, reference: Any) -> Any:
        import ray

        return ray.get(reference)


def fan_out(
    ray: Any,
    factory: SamplerFactory,
    work: Work,
    config: RayConfig,
    *,
    run: RunRecord,
    budget: BudgetConfig,
    stall_s: float,
    should_stop: Callable[[], bool],
) -> Iterator[Row]:
    """Have ``work.shards`` made by a pool of actors.

    Args:
        run: this start of the job, for what has been spent and stored so far.

    Yields:
        Rows as shards end. They prove nothing: Ray may lose or repeat them, so compare the commits afterwards.

    Raises:
        StorageError: no worker gave a sign of life for ``stall_s``, or the cluster has had no room for one for
            ``ray.start_timeout_s``; says what was asked for and what the cluster has.
        Stopped: a cap of ``budget`` was reached; all rows were yielded before.
        Exception: what Ray raised, e.g. because actors cannot start.
    """
    desk = beside_driver(ray, Desk, budget, run.workers)
    room = ResourceDeadline(ray, config.generate_needs, 1, config.start_timeout_s)
    ray.get(desk.watch.remote(should_stop(), draining(ray), run.spent_s, run.stored))
    rows: queue.Queue[Row | BaseException | None] = queue.Queue()

    def consume() -> None:
        try:
            for row in _dataset(ray, factory, work, config, desk).iter_rows():
                rows.put(Row(int(row["shard"]), str(row["outcome"]), int(row["bytes"])))
            rows.put(None)
        except BaseException as error:  # handed to the driver's thread, which raises it
            rows.put(error)

    threading.Thread(target=consume, name="dakter-rows", daemon=True).start()
    looked, reason = time.monotonic(), None
    while True:
        try:
            row, came = rows.get(timeout=_BEAT_S), True
        except queue.Empty:
            row, came = None, False
        if not came or time.monotonic() - looked > _BEAT_S:  # also while rows keep coming
            looked = time.monotonic()
            run.beat()
            room.check(at_work=room.fits())
            silence_s = 0.0
            try:
                told = desk.watch.remote(should_stop(), draining(ray), run.spent_s, run.stored)
                silence_s, reason = ray.get(told, timeout=30)
            except ray.exceptions.RayError as error:  # it restarts elsewhere
                log.warning("no answer from the desk: %s", error)
            if silence_s > stall_s:
                raise StorageError(
                    f"sampling actors gave no sign of life for {silence_s:.0f} s; asked for {run.workers} x "
                    f"{config.generate_needs}, the cluster has {room.has()}; look at it (ray status), or raise "
                    "corpus.stall_s if one micro-batch may take that long"
                )
        if not came:
            continue
        if row is None:
            _, reason = ray.get(desk.watch.remote(should_stop(), {}, run.spent_s, run.stored))
            if reason:
                raise Stopped(f"{reason}; committed work is kept, raise the cap and the same command goes on")
            return
        if isinstance(row, BaseException):
            raise row
        yield row


def _dataset(ray: Any, factory: SamplerFactory, work: Work, config: RayConfig, desk: Any) -> Any:
    from ray.data import ActorPoolStrategy, DataContext

    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.max_errored_blocks = 0  # anything else drops rows without a word
    context.max_consecutive_actor_init_deaths = 2 * config.generate_workers
    context.execution_no_progress_timeout_s = -1  # a shard may take longer than any guess: the desk watches instead
    with DataContext.current(context):
        number = len(work.shards)
        at_once = 2 if number >= 4 * config.generate_workers else 1
        return ray.data.range(number, override_num_blocks=number).map_batches(
            ShardActor,
            batch_size=1,
            # Every actor is asked for at once: work begins with the first that has a place, those that wait are what an
            # autoscaler starts nodes for, and they go when no shard is left to begin. A pool between min_size and
            # max_size (Ray 2.60) would only grow into resources that are already there.
            # Two shards in an actor's hands, one drawn, one stored, where there are enough of them: else the last ones
            # wait behind a busy actor while others idle.
            compute=ActorPoolStrategy(
                size=min(config.generate_workers, number),
                max_tasks_in_flight_per_actor=at_once,
                max_concurrent_calls_per_actor=at_once,
                enable_true_multi_threading=at_once > 1,
            ),
            num_cpus=config.generate_cpus,
            num_gpus=config.generate_gpus or None,
            fn_constructor_kwargs={"factory": factory, "work": work, "desk": desk},
        )


def lost(shards: Sequence[int], layout: Layout) -> list[int]:
    """Which of ``shards`` are neither committed nor set aside."""
    ended = set(layout.committed()) | set(layout.failed())
    return [shard for shard in shards if shard not in ended]
