"""Working files of suite ``science`` that several processes may want at once: one makes them, the others wait."""

from __future__ import annotations

import fcntl
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

log = logging.getLogger("dakter.jobs.benchmark")

_POLL_S = 0.5


@contextmanager
def alone(folder: Path, name: str, check_stop: Callable[[], None]) -> Iterator[None]:
    """Hold ``name`` below ``folder`` against every other process and thread; let go at the end, or with the process.

    To be asked inside: whether another has made it meanwhile.

    Args:
        check_stop: called twice a second while another holds it; what it raises ends the waiting.
    """
    locks = folder / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with open(locks / f"{name}.lock", "a") as lock:
        if not _taken(lock):
            log.info("science: another process makes %s; waiting for it", name)
            while not _taken(lock):
                check_stop()
                time.sleep(_POLL_S)
        yield


def _taken(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
