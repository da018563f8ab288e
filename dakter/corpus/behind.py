"""Writing behind: one shard is encoded, stored and committed while the next one is being sampled."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

from dakter.corpus.commit import Outcome, write_shard
from dakter.corpus.layout import Layout
from dakter.corpus.shard import Arrays


class WriteBehind:
    """One writer that runs beside its caller; a context whose end waits until everything is committed.

    At most one shard is being written and none waits, so memory is two decoded shards: the caller's and the writer's.
    A caller slower than ``write_shard`` never waits; a faster one is slowed down to it.

    Args:
        threads: compressing threads.
    """

    def __init__(self, layout: Layout, threads: int = 2):
        self._layout = layout
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="dakter-encode")
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="dakter-write")
        self._last: Future[Outcome] | None = None
        self._held: Arrays | None = None  # those that are being written
        self._spare: Arrays | None = None

    def spare(self) -> Arrays | None:
        """Arrays that were written, for ``compute`` to fill again; None: none yet. They are the caller's then."""
        arrays, self._spare = self._spare, None
        return arrays

    def submit(self, shard: int, arrays: Arrays, facts: Mapping[str, Any] | None = None) -> Future[Outcome]:
        """Begin ``write_shard``, after the one before has ended; raises what that one raised.

        The arrays are the writer's until they come back through ``spare``.
        """
        if self._last is not None:
            self._last.result()
        self._spare, self._held = self._held, arrays
        self._last = self._thread.submit(write_shard, self._layout, shard, arrays, facts, pool=self._pool)
        return self._last

    def __enter__(self) -> WriteBehind:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True)
        self._pool.shutdown()
        if kind is None and self._last is not None:
            self._last.result()
