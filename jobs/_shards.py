"""Generating actors on Ray Data: each draws whole shards, commits them itself, and returns one row a shard."""

from __future__ import annotations

import json
import logging
import os
import queue
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dakter.corpus.commit import read_commit, set_aside, write_shard
from dakter.corpus.layout import Layout
from dakter.corpus.shard import PairSampler, compute
from dakter.errors import ConflictError, Stopped, StorageError
from jobs._cli import setup_logging
from jobs._ray import RayConfig

log = logging.getLogger("dakter.jobs.generate")

# Makes the sampler; called once in the driver and once in each actor, so it must pickle.
SamplerFactory = Callable[[], PairSampler]
_BEAT_S = 0.5


class Desk:
    """A small Ray actor between driver and workers: the wish to stop, signs of life, how often a shard was begun.

    The counts are of one run: they tell a shard that kills its process from bad luck. Nothing that must last is here.
    """

    def __init__(self) -> None:
        self._stop = False
        self._begun: dict[int, int] = {}
        self._last_sign = time.monotonic()

    def begin(self, shard: int) -> int:
        """Count and return the attempt, from 1; 0: stop."""
        self._last_sign = time.monotonic()
        if self._stop:
            return 0
        self._begun[shard] = self._begun.get(shard, 0) + 1
        return self._begun[shard]

    def beat(self) -> bool:
        """A sign of life from a worker; returns whether to stop."""
        self._last_sign = time.monotonic()
        return self._stop

    def watch(self, stop: bool) -> float:
        """From the driver: pass on the wish to stop; returns the seconds since the last sign of life."""
        self._stop = self._stop or stop
        return time.monotonic() - self._last_sign


@dataclass(frozen=True)
class Work:
    """What every actor is told."""

    corpus: str
    identity_digest: str
    shards: tuple[int, ...]
    max_attempts: int
    log_level: str
    device: str


class ShardActor:
    """Ray Data calls it with row numbers of ``work.shards``; see ``fan_out``."""

    def __init__(self, factory: SamplerFactory, work: Work, desk: Any):
        setup_logging(work.log_level)
        self._work, self._desk = work, desk
        self._layout = Layout.open(work.corpus)
        if self._layout.digest != work.identity_digest:
            raise ConflictError(f"{work.corpus}: the identity changed after the driver read it; start the job again")
        self._sampler = factory()
        if json.loads(json.dumps(self._sampler.identity)) != self._layout.identity["sampler"]:
            raise ConflictError(
                f"{work.corpus}: the model changed while its corpus was being made; start the job again"
            )
        self._last_beat = 0.0

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        rows = [(self._work.shards[int(number)], *self._unit(self._work.shards[int(number)])) for number in batch["id"]]
        return {"shard": np.array([row[0] for row in rows]), "outcome": np.array([row[1] for row in rows])}

    def _unit(self, shard: int) -> tuple[str]:
        import ray

        last = ""
        while True:
            attempt = ray.get(self._desk.begin.remote(shard))
            if attempt == 0:
                return ("stopped",)
            if attempt > self._work.max_attempts:
                error = "the worker's process died at every attempt (killed, out of memory or crashed)"
                set_aside(self._layout, shard, attempts=attempt - 1, error=error, traceback=last or error)
                return ("failed",)
            try:
                return (self._make(shard),)
            except Stopped:
                return ("stopped",)
            except Exception as error:  # whatever it is: the shard is tried again, then set aside; the rest goes on
                last = traceback.format_exc()
                log.warning("shard %d, attempt %d of %d: %r", shard, attempt, self._work.max_attempts, error)
                if attempt >= self._work.max_attempts:
                    text = f"{type(error).__name__}: {error}"
                    set_aside(self._layout, shard, attempts=attempt, error=text, traceback=last)
                    return ("failed",)

    def _make(self, shard: int) -> str:
        if read_commit(self._layout, shard):
            return "stood"
        size, start = self._layout.samples_per_shard, time.monotonic()
        arrays = compute(self._sampler, shard * size, size, self._beat)
        sampled = time.monotonic()
        facts = {
            "device": self._work.device,
            "cpus": os.cpu_count(),
            "sampling_s": round(sampled - start, 3),
            "committed_at": time.time(),
        }
        return "written" if write_shard(self._layout, shard, arrays, facts).written else "stood"

    def _beat(self) -> None:
        import ray

        now = time.monotonic()
        if now - self._last_beat < _BEAT_S:  # a remote call a micro-batch would cost more than a fast sampler
            return
        self._last_beat = now
        if ray.get(self._desk.beat.remote()):
            raise Stopped("stopped as asked; the shard in hand is given up")


def fan_out(
    ray: Any,
    factory: SamplerFactory,
    work: Work,
    config: RayConfig,
    *,
    stall_s: float,
    should_stop: Callable[[], bool],
) -> Iterator[tuple[int, str]]:
    """Have ``work.shards`` made by a pool of actors.

    Yields:
        (shard, "written" | "stood" | "failed" | "stopped") as shards end. Rows prove nothing: Ray may lose or repeat
        them, so compare the commits afterwards.

    Raises:
        StorageError: no worker gave a sign of life for ``stall_s``.
        Exception: what Ray raised, e.g. because actors cannot start.
    """
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=True
    )
    desk = (
        ray.remote(Desk)
        .options(num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here, max_concurrency=1)
        .remote()
    )
    rows: queue.Queue[tuple[int, str] | BaseException | None] = queue.Queue()

    def consume() -> None:
        try:
            for row in _dataset(ray, factory, work, config, desk).iter_rows():
                rows.put((int(row["shard"]), str(row["outcome"])))
            rows.put(None)
        except BaseException as error:  # handed to the driver's thread, which raises it
            rows.put(error)

    threading.Thread(target=consume, name="dakter-rows", daemon=True).start()
    looked = time.monotonic()
    while True:
        try:
            row, came = rows.get(timeout=_BEAT_S), True
        except queue.Empty:
            row, came = None, False
        if not came or time.monotonic() - looked > _BEAT_S:  # also while rows keep coming
            looked = time.monotonic()
            silence_s = 0.0
            try:
                silence_s = ray.get(desk.watch.remote(should_stop()), timeout=30)
            except ray.exceptions.RayError as error:  # it restarts elsewhere
                log.warning("no answer from the desk: %s", error)
            if silence_s > stall_s:
                raise StorageError(
                    f"no sampling actor gave a sign of life for {silence_s:.0f} s; look at the cluster (ray status), "
                    "or raise corpus.stall_s if one micro-batch may take that long"
                )
        if not came:
            continue
        if row is None:
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
        return ray.data.range(number, override_num_blocks=number).map_batches(
            ShardActor,
            batch_size=1,
            # One task in an actor's hands: with more, the last shards wait behind a busy actor while others idle.
            compute=ActorPoolStrategy(size=min(config.generate_workers, number), max_tasks_in_flight_per_actor=1),
            num_cpus=config.generate_cpus,
            num_gpus=config.generate_gpus or None,
            fn_constructor_kwargs={"factory": factory, "work": work, "desk": desk},
        )


def lost(shards: Sequence[int], layout: Layout) -> list[int]:
    """Which of ``shards`` are neither committed nor set aside."""
    ended = set(layout.committed()) | set(layout.failed())
    return [shard for shard in shards if shard not in ended]


def failure_text(failed: Sequence[dict[str, Any]]) -> list[str]:
    """One line for each shard that was set aside."""
    return [f"shard {row['shard']} ({row['attempts']} attempts): {row['error']}" for row in failed]
