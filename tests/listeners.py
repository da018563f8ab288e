"""Where processes listen for TCP, read from /proc: which of their sockets could be reached from another machine."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from repeatedly import repeatedly

_PROC = Path("/proc")
_LISTEN = "0A"  # the kernel's name of the state


@dataclass(frozen=True)
class Listener:
    """A listening socket, with a process that holds it.

    Attributes:
        command: the process's command line, cut short.
        address: as bound; ``0.0.0.0`` and ``::`` are every interface.
    """

    pid: int
    command: str
    address: str
    port: int

    @property
    def outward(self) -> bool:
        """Whether anything but this machine's own loopback leads to it."""
        address = ipaddress.ip_address(self.address)
        mapped = getattr(address, "ipv4_mapped", None)
        return not (mapped or address).is_loopback


def tree(root: int | None = None) -> set[int]:
    """A process (None: this one) and all that descend from it, without those whose parent has died."""
    children: dict[int, set[int]] = {}
    for pid in _pids():
        with suppress(OSError):
            # pid (name with any character) state ppid ...
            parent = int((_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, set()).add(pid)
    found: set[int] = set()
    waiting = {os.getpid() if root is None else root}
    while waiting:
        found |= waiting
        waiting = {child for pid in waiting for child in children.get(pid, ())} - found
    return found


def listeners(pids: Iterable[int]) -> set[Listener]:
    """Every TCP socket on which one of these processes listens."""
    sockets = _listening()
    found = set()
    for pid in pids:
        with suppress(OSError):  # it ended meanwhile
            folder = _PROC / str(pid)
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:200].strip()
            for handle in (folder / "fd").iterdir():
                with suppress(OSError):
                    where = sockets.get(os.readlink(handle))
                    if where:
                        found.add(Listener(pid, command, *where))
    return found


def outward(root: int | None = None) -> set[Listener]:
    """Those of a process tree that other machines could reach."""
    return {found for found in listeners(tree(root)) if found.outward}


@contextmanager
def watching(root: int | None = None, every_s: float = 0.3) -> Iterator[set[Listener]]:
    """All listeners of a process tree that are seen while this is open: many live for seconds only."""
    seen: set[Listener] = set()
    with repeatedly(lambda: seen.update(listeners(tree(root))), every_s):
        yield seen


def _pids() -> list[int]:
    return [int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit()]


def _listening() -> dict[str, tuple[str, int]]:
    """``socket:[<inode>]`` -> (address, port) of all listening sockets of this network namespace."""
    rows = [line.split() for table in ("tcp", "tcp6") for line in (_PROC / "net" / table).read_text().splitlines()[1:]]
    return {f"socket:[{row[9]}]": _place(row[1]) for row in rows if row[3] == _LISTEN}


def _place(text: str) -> tuple[str, int]:
    """``0100007F:1F90`` -> ("127.0.0.1", 8080): hexadecimal, the address in 32-bit words of the host's byte order."""
    words, _, port = text.partition(":")
    data = b"".join(bytes.fromhex(words[at : at + 8])[::-1] for at in range(0, len(words), 8))
    return str(ipaddress.ip_address(data)), int(port, 16)
