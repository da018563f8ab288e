"""What can go wrong, as one small tree.

    DakterError                 every failure that dakter names                      exit 1
    ├── ConfigError             a setting that is unknown or out of range            exit 2
    ├── DataError               input that cannot be used: names each file at fault  exit 1
    ├── StorageError            a path or bucket that cannot be reached or written   exit 1
    ├── IntegrityError          bytes that are not what their record says            exit 1
    ├── ConflictError           something else already stands at this place          exit 1
    ├── GateError               the promotion gate said no                           exit 3
    └── Stopped                 asked to stop; finished work is kept, resumable      exit 4

Each message carries the value, what was expected and what to do. ``exit_status`` is what a job's process
returns for it (0 is "done").
"""

from __future__ import annotations

import errno

# What the operating system says when the machine, not the work, is at fault.
_MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ESTALE}


class DakterError(Exception):
    """Base of every failure that dakter names."""

    exit_status = 1


class ConfigError(DakterError, ValueError):
    """A setting is unknown, of the wrong type or out of range."""

    exit_status = 2


class DataError(DakterError, ValueError):
    """Input images, masks or tables cannot be used."""


class StorageError(DakterError, OSError):
    """A path or bucket cannot be reached, read or written."""


class IntegrityError(DakterError, ValueError):
    """Stored bytes differ from their record, or an artefact is not of the expected kind."""


class ConflictError(DakterError, ValueError):
    """An artefact made with other settings already stands at the place to be written."""


class GateError(DakterError):
    """The promotion gate refused the candidate."""

    exit_status = 3


class Stopped(DakterError):
    """A stop was asked for; work that was finished is kept and the same command resumes."""

    exit_status = 4


def of_environment(error: BaseException) -> bool:
    """Whether ``error`` tells of the store or the machine (unreachable, refused, full, out of memory), not of the work.

    Such an error is waited out: the same work may well succeed later, or elsewhere. Any other is the work's own.
    """
    if isinstance(error, StorageError | MemoryError | ConnectionError | TimeoutError):
        return True
    return isinstance(error, OSError) and error.errno in _MACHINE


def listing(items: list[str], most: int = 20) -> str:
    """``items`` one a line for an error message, the rest counted."""
    lines = [f"  - {item}" for item in items[:most]]
    if len(items) > most:
        lines.append(f"  ... and {len(items) - most} more")
    return "\n".join(lines)
