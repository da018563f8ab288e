"""A labeller whose process is killed, importable by Ray's workers."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np

from jobs._tile_labeller import TileLabeller


class KilledOnce(TileLabeller):
    """Its process is killed by SIGKILL the first time that sample ``at`` is asked for; the file ``mark`` is left."""

    def __init__(self, *arguments: object, at: int, mark: str):
        super().__init__(*arguments)  # type: ignore[arg-type]
        self._at, self._mark = at, Path(mark)

    def __call__(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self._at in indices and not self._mark.exists():
            self._mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(indices)
