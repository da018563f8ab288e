"""A sampler without a model for the chaos suite: pure in its indices, slow on purpose, leaving traces of its work."""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dakter import rng
from dakter.corpus.content import Content
from dakter.schema import OSD, soft_to_stored

NODE_VARIABLE = "DAKTER_CHAOS_NODE"  # name of the node that a worker runs on
_CONTENT = Content(OSD, ("vv",), 8, 8, (0.0, 255.0))


@dataclass
class ChaosSampler:
    """Pairs of 8x8 pixels; importable by Ray's workers, and pickled to them with its settings.

    Attributes:
        delay_s: seconds that a micro-batch takes.
        trace: folder in which each micro-batch leaves an empty file once it is computed, see ``Trace``.
        driver: name of the driver, for the traces.
        poison: index of a sample whose micro-batch raises as long as the file ``poison_mark`` exists.
        scratch_bytes: size of a file that each micro-batch writes to TMPDIR and removes: a full disk is felt.
    """

    delay_s: float = 0.0
    trace: str = ""
    driver: str = "plain"
    poison: int | None = None
    poison_mark: str = ""
    scratch_bytes: int = 0
    micro_batch: int = 4
    identity: dict[str, Any] = field(default_factory=lambda: {"model_digest": "chaos", "micro_batch": 4})
    content: Content = _CONTENT

    def __call__(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self.scratch_bytes:
            with tempfile.TemporaryFile(dir=os.environ.get("TMPDIR")) as scratch:
                scratch.write(b"\0" * self.scratch_bytes)
                scratch.flush()
        began = time.time()
        time.sleep(self.delay_s)
        if self.poison in indices and Path(self.poison_mark).exists():
            raise RuntimeError(f"sample {self.poison} is poisoned")
        images = [rng.numpy_rng(0, "chaos/image", index=int(i)).integers(0, 256, (1, 8, 8)) for i in indices]
        logits = [rng.numpy_rng(0, "chaos/label", index=int(i)).gamma(0.3, size=(5, 8, 8)) for i in indices]
        soft = np.stack(logits) + 1e-6
        if self.trace:
            Trace(int(indices[0]), self.driver, os.environ.get(NODE_VARIABLE, "none"), began).leave(Path(self.trace))
        return np.stack(images).astype(np.uint8), soft_to_stored(soft / soft.sum(axis=1, keepdims=True))


@dataclass(frozen=True)
class Trace:
    """One computed micro-batch: its first index, by which driver's actors, on which node, begun when (Unix seconds)."""

    first: int
    driver: str
    node: str
    began: float

    def leave(self, folder: Path) -> None:
        """An empty file that tells it."""
        (folder / f"{self.first}~{self.driver}~{self.node}~{self.began:.6f}~{os.getpid()}").touch()


def traces(folder: Path) -> list[Trace]:
    """All traces of a folder."""
    parts = [name.split("~") for name in os.listdir(folder)]
    return [Trace(int(first), driver, node, float(began)) for first, driver, node, began, _ in parts]
