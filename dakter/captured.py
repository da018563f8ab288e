"""Forward, loss and backward of a training step, or a forward alone, on a GPU as one CUDA graph.

Small networks leave a GPU idle while Python launches their kernels one by one; a graph launches them all at once, and
runs the same kernels on the same numbers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

import torch

log = logging.getLogger("dakter")

Tensors = tuple[torch.Tensor, ...]

_WARM_STEPS = 3  # eager steps first, as capture wants: libraries choose kernels and allocate in them


class Captured:
    """A function of tensors that leaves gradients in ``parameters``; shapes must stay as in its first call.

    On the CPU, and where capture is refused, every call runs it as it is.

    Args:
        step: runs forward and backward, and returns tensors. It must not wait for the GPU nor branch on its values.
            What it draws hangs on the seed set before each call, as without a graph.
        parameters: their gradients are the step's: cleared before each call, held in place by the graph. Empty for a
            step without a backward pass.
        capture: False runs every call as it is.
    """

    def __init__(self, step: Callable[..., Tensors], parameters: Iterable[torch.Tensor], *, capture: bool):
        self._step, self._parameters, self._capture = step, list(parameters), capture
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: Tensors = ()
        self._outputs: Tensors = ()
        self._calls = 0

    def __call__(self, *inputs: torch.Tensor) -> Tensors:
        """The step's tensors, valid until the next call."""
        self._calls += 1
        if not self._capture:
            return self._plainly(inputs)
        if self._calls <= _WARM_STEPS:
            return self._aside(inputs)
        if self._graph is None and not self._captured(inputs):
            return self._plainly(inputs)
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given, non_blocking=True)
        assert self._graph is not None
        self._graph.replay()
        return self._outputs

    def _plainly(self, inputs: Tensors) -> Tensors:
        for parameter in self._parameters:
            parameter.grad = None
        return self._step(*inputs)

    def _aside(self, inputs: Tensors) -> Tensors:
        """On a stream apart: what the current one began must not be captured later."""
        side: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        now = torch.cuda.current_stream()
        side.wait_stream(now)
        with torch.cuda.stream(side):
            outputs = self._plainly(inputs)
        now.wait_stream(side)
        return outputs

    def _captured(self, inputs: Tensors) -> bool:
        self._inputs = tuple(value.clone() for value in inputs)
        for parameter in self._parameters:
            parameter.grad = None
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._outputs = self._step(*self._inputs)
        except RuntimeError as error:
            log.warning(
                "step %s is not captured as a CUDA graph (%s); it runs slower, with the same result",
                self._step.__name__,
                error,
            )
            self._capture = False
            torch.cuda.synchronize()
            return False
        self._graph = graph
        return True
