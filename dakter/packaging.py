"""A segmenter as others use it: raw images in, class probabilities out, any size, exportable as one graph.

What is around a network whatever it is: students and the joint model are packaged by this, each with logits of its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dakter.errors import ConfigError


class Packaged(nn.Module, ABC):
    """A segmenter with everything around it that a user would have to know.

    ``forward``: raw float32 (B, C, H, W) in the units of ``value_range`` -> probabilities float32 (B, K, H, W).
    Values outside the range are clipped, NaN is not accepted; the range is mapped to [-1, 1]; height and width are
    padded below and right to multiples of ``stride`` by repeating the edge, and cut back afterwards.

    Args:
        network: what the logits come from.
        value_range: raw value that is -1 and raw value that is +1 to the network.
        bands: names of the C channels in their order.
        class_names: names of the K classes in their order.
        stride: what the network wants H and W to be multiples of.
        temperature: the logits are divided by it before the softmax (Guo et al. 2017); fitted on val.

    Attributes:
        evaluations: how often the network is evaluated for one image.

    Raises:
        ConfigError: an empty value range, a temperature that is not above 0, or a stride below 1.
    """

    low: Tensor
    high: Tensor
    temperature: Tensor
    evaluations: int = 1

    def __init__(
        self,
        network: nn.Module,
        *,
        value_range: tuple[float, float],
        bands: Sequence[str],
        class_names: Sequence[str],
        stride: int,
        temperature: float = 1.0,
    ):
        super().__init__()
        low, high = value_range
        if not low < high:
            raise ConfigError(f"value_range is {value_range}; expected a lower value before a higher one")
        if not temperature > 0:
            raise ConfigError(f"temperature is {temperature}; expected more than 0 (1 leaves the logits as they are)")
        if stride < 1:
            raise ConfigError(f"stride is {stride}; expected at least 1")
        self.network = network
        self.bands, self.class_names, self.stride = tuple(bands), tuple(class_names), stride
        # Buffers, so that they travel in the exported graph and are read back with it.
        self.register_buffer("low", torch.tensor(float(low)))
        self.register_buffer("high", torch.tensor(float(high)))
        self.register_buffer("temperature", torch.tensor(float(temperature)))

    @property
    def num_parameters(self) -> int:
        """Weights of the network, trainable or not."""
        return sum(weight.numel() for weight in self.parameters())

    def metadata(self) -> dict[str, Any]:
        """What a user must know to feed it and to read its answer; JSON."""
        return {
            "input": "raw float32 (batch, band, y, x) in value_range",
            "output": "probabilities float32 (batch, class, y, x)",
            "bands": list(self.bands),
            "class_names": list(self.class_names),
            "value_range": [float(self.low), float(self.high)],
            "stride": self.stride,
            "temperature": float(self.temperature),
        }

    def example(self, size_px: int | None = None) -> Tensor:
        """A raw batch of two to trace or try the package with, float32 (2, C, size, size), spanning ``value_range``.

        The size is no multiple of the stride, so that a graph traced with it holds the padding.
        """
        size = size_px or 2 * self.stride + self.stride // 2 + 1
        shape = (2, len(self.bands), size, size + 3)
        ramp = torch.linspace(0.0, 1.0, int(torch.tensor(shape).prod())).reshape(shape)
        return self.low + ramp * (self.high - self.low)

    @abstractmethod
    def logits(self, model_BCHW: Tensor) -> Tensor:
        """Model scale float32 (B, C, H, W), H and W multiples of the stride -> logits float32 (B, K, H, W)."""

    def forward(self, raw_BCHW: Tensor) -> Tensor:
        height, width = raw_BCHW.shape[-2:]
        clipped = torch.minimum(torch.maximum(raw_BCHW, self.low), self.high)
        model_BCHW = (clipped - self.low) * (2.0 / (self.high - self.low)) - 1.0
        padded = _extend(_extend(model_BCHW, 2, self.stride), 3, self.stride)
        logits = _first(_first(self.logits(padded), 2, height), 3, width)
        return torch.softmax(logits / self.temperature, dim=1)


def _extend(x: Tensor, axis: int, stride: int) -> Tensor:
    """Repeat the last row or column up to a multiple of ``stride``.

    By index: replicate and reflect padding refuse images smaller than the padding or guard on the size when traced.
    """
    size = x.shape[axis]
    index = torch.arange((size + stride - 1) // stride * stride, device=x.device).clamp(max=size - 1)
    return x.index_select(axis, index)


def _first(x: Tensor, axis: int, count: int) -> Tensor:
    """The first ``count`` rows or columns; a slice would guard on whether it takes all of them when traced."""
    return x.index_select(axis, torch.arange(count, device=x.device))
