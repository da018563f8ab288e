"""The eight flips and quarter turns of the square, of the last two axes of a tensor."""

from __future__ import annotations

import torch

NUM_TURNS = 8


def turn(values: torch.Tensor, which: int) -> torch.Tensor:
    """Turned by ``which % 4`` quarters, and for ``which >= 4`` flipped left to right after that; 0 changes nothing."""
    out = torch.rot90(values, which % 4, (-2, -1))
    return out.flip(-1) if which >= 4 else out


def turn_back(values: torch.Tensor, which: int) -> torch.Tensor:
    """Inverse of ``turn``."""
    out = values.flip(-1) if which >= 4 else values
    return torch.rot90(out, -(which % 4), (-2, -1))
