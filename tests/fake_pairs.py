"""A sampler without a model, importable by Ray's workers: a pair is a pure function of seed, index and micro-batch."""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np

from dakter import rng
from dakter.corpus.content import Content
from dakter.schema import OSD, soft_to_stored


def _once_more(mark: str, times: int) -> bool:
    """Whether it happened fewer than ``times`` times so far, by files ``<mark><n>``; leaves one more if so."""
    marks = list(Path(mark).parent.glob(Path(mark).name + "*"))
    if len(marks) < times:
        Path(f"{mark}{len(marks)}").touch()
    return len(marks) < times


def processes(trace: Path) -> set[str]:
    """Those that left a file of a call in ``trace``."""
    return {path.name.split("-")[1] for path in trace.iterdir()}


class FakeSampler:
    """Pairs of 8x8 pixels.

    Args:
        poison: index at which every call raises.
        kill_at: index at which the process is killed by SIGKILL, ``kill_times`` times, counted by files
            ``<kill_mark><n>``.
        full_at: index at which the disk is full, ``full_times`` times, counted by files ``<full_mark><n>``.
        delay_s: seconds a call takes.
        trace: folder in which each call leaves an empty file ``<first index>-<pid>-<n>``.
        company: processes that must have left one before a call goes on; it waits two minutes at the most.
    """

    content = Content(OSD, ("vv",), 8, 8, (0.0, 255.0))

    def __init__(
        self,
        micro_batch: int = 4,
        seed: int = 0,
        poison: int | None = None,
        kill_at: int | None = None,
        kill_mark: str = "",
        kill_times: int = 1,
        full_at: int | None = None,
        full_mark: str = "",
        full_times: int = 1,
        delay_s: float = 0.0,
        trace: str = "",
        company: int = 1,
    ):
        self.micro_batch, self.seed = micro_batch, seed
        self.identity: dict[str, Any] = {"model_digest": "fake", "micro_batch": micro_batch}
        self.poison, self.kill_at, self.kill_mark, self.kill_times = poison, kill_at, kill_mark, kill_times
        self.full_at, self.full_mark, self.full_times = full_at, full_mark, full_times
        self.delay_s, self.trace, self.company = delay_s, trace, company

    def __call__(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        first = int(indices[0])
        time.sleep(self.delay_s)
        if self.trace:
            (Path(self.trace) / f"{first}-{os.getpid()}-{time.monotonic_ns()}").touch()
            until = time.monotonic() + 120.0
            while len(processes(Path(self.trace))) < self.company and time.monotonic() < until:
                time.sleep(0.05)
        if first == self.poison:
            raise RuntimeError(f"sample {first} is poisoned")
        if first == self.kill_at and _once_more(self.kill_mark, self.kill_times):
            os.kill(os.getpid(), signal.SIGKILL)
        if first == self.full_at and _once_more(self.full_mark, self.full_times):
            raise OSError(errno.ENOSPC, "No space left on device")
        shape = (len(self.content.bands), 8, 8)
        # As with a real network, a row's bytes depend on the micro-batch that it is computed in.
        batch = rng.numpy_rng(self.seed, "fake/batch", index=first * 1000 + len(indices)).integers(0, 5)
        images = [rng.numpy_rng(self.seed, "fake/image", index=int(i)).integers(0, 250, shape) + batch for i in indices]
        logits = [rng.numpy_rng(self.seed, "fake/label", index=int(i)).gamma(0.3, size=(5, 8, 8)) for i in indices]
        soft = np.stack(logits) + 1e-6
        return np.stack(images).astype(np.uint8), soft_to_stored(soft / soft.sum(axis=1, keepdims=True))
