"""A sampler without a model for the suite ``million``: small pairs, none like another, at next to no cost."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from dakter import rng
from dakter.corpus.content import Content
from dakter.schema import OSD, soft_to_stored


class TinySampler:
    """Random 8x8 images with soft labels of one in four patterns.

    Args:
        micro_batch: samples of a call.
        mark: folder in which the first call of each process leaves a file named by its time.time(); "": none.
    """

    content = Content(OSD, ("vv",), 8, 8, (-30.0, 0.0))

    def __init__(self, micro_batch: int = 256, mark: str = ""):
        self.micro_batch, self._mark = micro_batch, mark
        self.identity: dict[str, Any] = {"model_digest": "tiny"}
        weights = rng.numpy_rng(0, "suites/tiny").gamma(0.3, size=(4, len(OSD), 8, 8)) + 1e-6
        self._soft = soft_to_stored(weights / weights.sum(axis=1, keepdims=True))

    def __call__(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self._mark:
            Path(self._mark).mkdir(parents=True, exist_ok=True)
            (Path(self._mark) / f"{time.time():.3f}-{os.getpid()}").touch()
            self._mark = ""
        generator = rng.numpy_rng(0, "suites/tiny", index=int(indices[0]))
        images = generator.integers(0, 256, (len(indices), 1, 8, 8), dtype=np.uint8)
        return images, self._soft[indices % 4]
