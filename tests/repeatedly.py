"""Something looked at again and again while something else goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def repeatedly(look: Callable[[], None], every_s: float) -> Iterator[None]:
    """Calls ``look`` in a thread, with pauses of ``every_s``, while this is open."""
    ended = threading.Event()

    def work() -> None:
        while not ended.wait(every_s):
            look()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(30)
