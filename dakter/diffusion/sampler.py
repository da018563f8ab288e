"""From noise to pairs: the reverse process under one of diffusers' schedulers.

Image and label are stepped together as one state ``[x, y]`` by a scheduler that is given clean predictions: of the
image from v or x0, of the label as ``b * (2 softmax - 1)``. The noise of sample ``i`` comes from (seed, i) alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from dakter import rng
from dakter.config import Config, setting
from dakter.diffusion.balance import enter_labels, probabilities, reenter
from dakter.diffusion.label_maps import Given
from dakter.diffusion.loss import clean_image
from dakter.diffusion.schedule import SchedulerName, add_noise, continuous_t, set_steps
from dakter.errors import ConfigError


class SamplerConfig(Config):
    """How pairs are drawn."""

    scheduler: SchedulerName = setting("dpmpp_2m", "solver: DPM-Solver++ (2M), DDIM or DDPM")
    steps: int = setting(20, "network evaluations a sample; DDIM wants a divisor of diffusion.num_timesteps", ge=1)
    micro_batch: int = setting(
        16, "samples evaluated at a time; part of what decides a sample's bits", unit="samples", ge=1
    )
    precision: Literal["fp32", "bf16"] = setting("bf16", "number format of weights and activations")
    clip: bool = setting(True, "clip clean image predictions to [-1, 1], the range that images have")


@dataclass(frozen=True)
class Denoiser:
    """The network as a function from noisy pairs to clean predictions, in float32 outside and ``dtype`` inside.

    ``table``: descriptors of training images, of a network that is told such.
    """

    network: Callable[..., Any]
    objective: str
    label_loss: Literal["ce", "mse"]
    b: float
    device: torch.device
    clip: bool = True
    dtype: torch.dtype = torch.float32
    table: torch.Tensor | None = None

    def __call__(
        self, x: torch.Tensor, y: torch.Tensor, t_x: float, t_y: float | torch.Tensor, told: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Clean image ``(B, C, H, W)`` and soft label ``(B, K, H, W)``, float32; ``t_y`` may be a level for each row.

        ``told``: descriptors of ``untold``, of ``draw_descriptors``, or of ``Given``.
        """
        levels_x = torch.full((x.shape[0],), t_x, device=self.device)  # len(x) would freeze it in an exported graph
        levels_y = torch.full((x.shape[0],), t_y, device=self.device) if isinstance(t_y, float) else t_y
        more = () if told is None else (told,)
        out = self.network(x.to(self.dtype), y.to(self.dtype), levels_x, levels_y, *more)
        image = clean_image(out.image.float(), x, levels_x, self.objective)
        return (image.clamp(-1, 1) if self.clip else image), probabilities(out.logits, self.label_loss)

    def draw_descriptors(self, seed: int, stream: str, indices: Sequence[int]) -> torch.Tensor | None:
        """What the network is told of images that are to be drawn: of a training image, by (seed, stream, index).

        Raises:
            ConfigError: the table was never set, so the network was not trained.
        """
        if self.table is None:
            return None
        if not bool(self.table.isfinite().all()):
            raise ConfigError(
                "this network is told descriptors and has none of training images; expected a trained one "
                "(dakter.diffusion.fit sets its table)"
            )
        rows = [int(rng.numpy_rng(seed, stream, 0, int(i)).integers(len(self.table))) for i in indices]
        return self.table[rows].float()


def reverse(
    scheduler: Any,
    steps: int,
    state: torch.Tensor,
    predict: Callable[[torch.Tensor, float], torch.Tensor],
    generators: Sequence[torch.Generator],
) -> torch.Tensor:
    """Run ``state`` (pure noise) through ``steps`` evaluations of ``predict(state, t) -> clean``.

    ``generators`` (CPU, one a row) feed schedulers that add noise on the way (DDPM).
    """
    levels = int(scheduler.config.num_train_timesteps)
    for timestep in set_steps(scheduler, steps):
        clean = predict(state, continuous_t(timestep, levels))
        state = scheduler.step(clean, timestep, state, generator=list(generators)).prev_sample
    return state


def draw_pairs(
    denoiser: Denoiser,
    scheduler: Any,
    steps: int,
    *,
    bands: int,
    num_classes: int,
    size: tuple[int, int],
    seed: int,
    indices: Sequence[int],
    clean_t: float,
    given: Given | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples of p(x, y) along t_x = t_y: images and the soft labels of the last evaluation.

    Rows that are given a label map are samples of p(x | y): their label input stays that map at level ``clean_t``
    while the image is denoised. Of these the soft label of the last evaluation means nothing: see ``Given.label``.
    """
    x = rng.normal((bands, *size), seed, "sample/image", 0, indices)
    y = rng.normal((num_classes, *size), seed, "sample/label", 0, indices)
    told = denoiser.draw_descriptors(seed, "sample/descriptors", indices)
    see = _as_it_is if given is None else _with_maps(denoiser, given, y, clean_t)
    if given is not None and given.descriptors is not None and told is not None:
        told = torch.where(_rows(given, told), torch.from_numpy(given.descriptors).to(told), told)
    noise, soft = y.to(denoiser.device), torch.empty(0)

    def predict(state: torch.Tensor, t: float) -> torch.Tensor:
        nonlocal soft
        seen, level = see(state[:, bands:], t)
        image, soft = denoiser(state[:, :bands], seen, t, level, told)
        if given is not None and given.guidance != 1:
            image = _guided(denoiser, given, state[:, :bands], noise, t, told, image)
        return torch.cat([image, reenter(soft, denoiser.b)], 1)

    generators = [rng.torch_generator(seed, "sample/steps", 0, int(i)) for i in indices]
    state = reverse(scheduler, steps, torch.cat([x, y], 1).to(denoiser.device), predict, generators)
    return state[:, :bands], soft


# the state's label and its level to what the network sees of it, and the level of that
_LabelInput = Callable[[torch.Tensor, float], tuple[torch.Tensor, float | torch.Tensor]]


def _as_it_is(y: torch.Tensor, t: float) -> tuple[torch.Tensor, float | torch.Tensor]:
    return y, t


def _with_maps(denoiser: Denoiser, given: Given, noise: torch.Tensor, clean_t: float) -> _LabelInput:
    """The label input of rows with a map: that map at ``clean_t``, at every step with the same noise."""
    clean = enter_labels(torch.from_numpy(given.maps_BHW), noise.shape[1], denoiser.b)
    fixed = add_noise(clean, noise, torch.full((len(clean),), clean_t)).to(denoiser.device)
    rows = _rows(given, fixed)

    def see(y: torch.Tensor, t: float) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.where(rows, fixed, y), torch.where(rows.flatten(), clean_t, t)

    return see


def _guided(
    denoiser: Denoiser,
    given: Given,
    x: torch.Tensor,
    noise: torch.Tensor,
    t: float,
    told: torch.Tensor | None,
    image: torch.Tensor,
) -> torch.Tensor:
    """The clean image of rows with a map, as much further from p(x) than p(x | y) is as ``guidance`` says.

    Classifier-free guidance (Ho and Salimans, 2207.12598) on the clean prediction; p(x) is asked for with ``noise`` in
    the label's place, at t_y = 1.
    """
    free, _ = denoiser(x, noise, t, 1.0, told)
    further = free + given.guidance * (image - free)
    return torch.where(_rows(given, image), further.clamp(-1, 1) if denoiser.clip else further, image)


def _rows(given: Given, like: torch.Tensor) -> torch.Tensor:
    """Which rows have a map, to be broadcast against ``like``, where that is."""
    return torch.from_numpy(given.have_map_B).view(-1, *[1] * (like.ndim - 1)).to(like.device)


def micro_batches(count: int, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Positions ``0 .. count - 1`` in groups of exactly ``size``, the last filled up with repeats: (positions, kept).

    Matrix kernels are chosen by batch shape, so equal shapes are what makes a sample's bits independent of how many
    samples are asked for.
    """
    for start in range(0, count, size):
        kept = min(size, count - start)
        yield np.minimum(np.arange(start, start + size), count - 1), kept
