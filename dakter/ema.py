"""Exponential moving average of weights: the averaged network is the one that samples, or that is scored."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn


class Ema:
    """Float32 running average of a module's parameters and of its floating-point buffers (statistics of batch norm).

    The decay is ``min(decay, (1 + step) / (10 + step))``, so that a short run is not an average over its start.
    """

    def __init__(self, module: nn.Module, decay: float):
        self.decay = decay
        averaged = _averaged(module)
        self.names = list(averaged)
        self.values = [value.detach().float().clone() for value in averaged.values()]

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Take in the weights after optimiser step number ``step`` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        current = [value.detach() for value in _averaged(module).values()]
        torch._foreach_lerp_(self.values, current, 1 - decay)

    def state(self) -> dict[str, torch.Tensor]:
        return dict(zip(self.names, self.values, strict=True))

    @torch.no_grad()
    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        for name, value in zip(self.names, self.values, strict=True):
            value.copy_(state[name])


def _averaged(module: nn.Module) -> dict[str, torch.Tensor]:
    """Counters, such as batch norm's number of batches, are no weights."""
    buffers = {name: value for name, value in module.named_buffers() if value.is_floating_point()}
    return {**dict(module.named_parameters()), **buffers}
