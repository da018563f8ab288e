"""A student as others use it: see dakter.packaging."""

from __future__ import annotations

from torch import Tensor, nn

from dakter.errors import DataError
from dakter.packaging import Packaged


class PackagedStudent(Packaged):
    """A student's network, packaged.

    Its ``network`` takes model-scale float32 (B, C, H, W), H and W multiples of the stride (see ``stride_of``), to
    logits (B, K, H, W).
    """

    def logits(self, model_BCHW: Tensor) -> Tensor:
        return self.network(model_BCHW)


def stride_of(network: nn.Module) -> int:
    """The multiple that an smp network wants of H and W: its encoder's output stride, 32 for a usual encoder.

    Raises:
        DataError: the network has no encoder that tells it.
    """
    stride = getattr(getattr(network, "encoder", None), "output_stride", None)
    if not isinstance(stride, int):
        raise DataError(
            f"{type(network).__name__}: encoder.output_stride is {stride!r}; expected a number, as every "
            "segmentation_models_pytorch network has it"
        )
    return stride
