"""The joint model's own p(y | x) as a segmenter that others use as they use a student: see dakter.packaging.

The read-out of ``softlabel`` averages over draws of noise. Here the draws are fixed and travel as buffers, so that the
same image has the same answer everywhere, and one exported graph holds all of it. At the size of training the noise is
that of sample 0 of ``JointDiffusionPipeline.label``; beyond it, it repeats.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor

from dakter import rng
from dakter.diffusion.network import JointUNet
from dakter.diffusion.sampler import Denoiser
from dakter.diffusion.softlabel import IMAGE_NOISE, LABEL_NOISE, average_readout
from dakter.errors import ConfigError
from dakter.packaging import Packaged


class PackagedLabeller(Packaged):
    """A joint network, packaged as a segmenter; ``JointDiffusionPipeline.packaged`` makes one.

    Every image of a batch meets the same noise. The temperature acts on p(y | x): ``p^(1/T)``, renormalised.

    Args:
        network: the joint network, trained with independent noise levels.
        objective, label_loss, b, clean_t: see DiffusionConfig.
        turned: ask under another of the eight turns at each evaluation.
        evaluations: network evaluations for an image, averaged.
        seed: of the noise.
        period_px: edge of the square of noise, which repeats over larger images.
        Others as for Packaged.

    Raises:
        ConfigError: fewer than one evaluation; or as Packaged.
    """

    image_noise: Tensor
    label_noise: Tensor

    def __init__(
        self,
        network: JointUNet,
        *,
        objective: str,
        label_loss: Literal["ce", "mse"],
        b: float,
        clean_t: float,
        turned: bool,
        evaluations: int,
        seed: int,
        period_px: int,
        value_range: tuple[float, float],
        bands: Sequence[str],
        class_names: Sequence[str],
        temperature: float = 1.0,
    ):
        super().__init__(
            network,
            value_range=value_range,
            bands=bands,
            class_names=class_names,
            stride=network.stride,
            temperature=temperature,
        )
        if evaluations < 1:
            raise ConfigError(f"evaluations is {evaluations}; expected at least 1 network evaluation for an image")
        self.objective, self.label_loss, self.b = objective, label_loss, b
        self.clean_t, self.turned, self.evaluations, self.seed = clean_t, turned, evaluations, seed
        for name, channels, stream in (
            ("image_noise", network.bands, IMAGE_NOISE),
            ("label_noise", network.num_classes, LABEL_NOISE),
        ):
            draws = [rng.normal((channels, period_px, period_px), seed, stream, i, [0]) for i in range(evaluations)]
            self.register_buffer(name, torch.cat(draws))

    def metadata(self) -> dict[str, Any]:
        """As of every package, with how p(y | x) was asked for."""
        return {
            **super().metadata(),
            "evaluations": self.evaluations,
            "noise_seed": self.seed,
            "noise_period_px": self.image_noise.shape[-1],
            "turned": self.turned,
        }

    def logits(self, model_BCHW: Tensor) -> Tensor:
        """log p(y | x)."""
        network = cast(JointUNet, self.network)
        denoiser = Denoiser(
            network, self.objective, self.label_loss, self.b, model_BCHW.device, clip=False, table=network.table
        )
        soft = average_readout(
            denoiser,
            model_BCHW,
            image_noise=lambda draw, height, width: _repeated(self.image_noise[draw], height, width),
            label_noise=lambda draw, height, width: _repeated(self.label_noise[draw], height, width),
            clean_t=self.clean_t,
            evaluations=self.evaluations,
            turned=self.turned,
        )
        return soft.clamp_min(torch.finfo(soft.dtype).tiny).log()


def _repeated(noise_CPP: Tensor, height: int, width: int) -> Tensor:
    """(C, P, P) -> (1, C, H, W) that repeats every P rows and columns; by index, so that a trace takes any size."""
    for axis, size in ((1, height), (2, width)):
        index = torch.arange(size, device=noise_CPP.device) % noise_CPP.shape[axis]
        noise_CPP = noise_CPP.index_select(axis, index)
    return noise_CPP[None]
