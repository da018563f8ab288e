"""A packaged segmenter as a graph that went through a file, as a registry keeps it."""

from __future__ import annotations

import io
from collections.abc import Callable

import torch
from torch.fx.experimental import _config

from dakter.packaging import Packaged


def round_trip(package: Packaged, *, oblivious: bool = True) -> Callable[[torch.Tensor], torch.Tensor]:
    """Exported with every size left open, saved as pt2, loaded; ``oblivious`` as in dakter.tracking."""
    auto = torch.export.Dim.AUTO
    with _config.patch(backed_size_oblivious=oblivious):  # type: ignore[attr-defined]
        program = torch.export.export(package, (package.example(),), dynamic_shapes=[{0: auto, 2: auto, 3: auto}])
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    return torch.export.load(buffer).module()
