"""Working files of suite ``science`` that several processes may want at once: one makes them, the others wait."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def alone(folder: Path, name: str) -> Iterator[None]:
    """Hold ``name`` below ``folder`` against every other process and thread; let go at the end, or by dying.

    To be asked inside: whether another has made it meanwhile.
    """
    locks = folder / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with open(locks / f"{name}.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
