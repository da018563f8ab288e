"""A trained joint model as a diffusers pipeline, usable without the rest of this project::

from dakter.diffusion.pipeline import JointDiffusionPipeline
pipe = JointDiffusionPipeline.from_pretrained("model")
samples = pipe(batch_size=4, num_inference_steps=20, seed=0)
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import nn

from dakter.diffusion.label_maps import Given
from dakter.diffusion.network import JointUNet
from dakter.diffusion.package import PackagedLabeller
from dakter.diffusion.sampler import Denoiser, SamplerConfig, draw_pairs, micro_batches
from dakter.diffusion.saved import fetch_model, put_model
from dakter.diffusion.schedule import DiffusionConfig, build_scheduler, same_levels
from dakter.diffusion.softlabel import SoftLabelConfig, chains, readout
from dakter.errors import ConfigError, DataError
from dakter.progress import without_bars
from dakter.schema import ClassTable


@dataclass(frozen=True)
class JointSamples:
    """``images`` float32 (B, C, H, W) in [-1, 1] and ``soft_labels`` float32 (B, K, H, W), on the CPU."""

    images: torch.Tensor
    soft_labels: torch.Tensor


class JointDiffusionPipeline(DiffusionPipeline):
    """p(image, label map) and its conditionals.

    Args:
        unet: the joint network.
        scheduler: any diffusers scheduler with the trained noise levels; ``__call__`` steps with it as it is.
        b: scale of the labels. mode, objective, label_loss, clean_t: see DiffusionConfig.
        dihedral: it learned from turned images, so p(y | x) may be averaged over turns.
        size_px: edge of the square images that the model was trained on.
        class_table: ``ClassTable.to_json()``. bands: names. value_range: raw values at stored 0 and full scale.
    """

    model_cpu_offload_seq = "unet"

    def __init__(
        self,
        unet: JointUNet,
        scheduler: Any,
        b: float = 1.0,
        mode: str = "joint",
        objective: str = "v",
        label_loss: str = "ce",
        clean_t: float = 0.01,
        dihedral: bool = False,
        size_px: int = 64,
        class_table: dict[str, Any] | None = None,
        bands: list[str] | tuple[str, ...] = (),
        value_range: list[float] | tuple[float, ...] = (0.0, 255.0),
    ):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        self.register_to_config(
            b=b,
            mode=mode,
            objective=objective,
            label_loss=label_loss,
            clean_t=clean_t,
            dihedral=dihedral,
            size_px=size_px,
            class_table=class_table,
            bands=list(bands),
            value_range=list(value_range),
        )
        self._prepared: tuple[Any, nn.Module] | None = None

    @classmethod
    def build(
        cls,
        unet: JointUNet,
        diffusion: DiffusionConfig,
        *,
        b: float,
        dihedral: bool,
        size_px: int,
        class_table: ClassTable,
        bands: Sequence[str],
        value_range: Sequence[float],
    ) -> JointDiffusionPipeline:
        """The pipeline of a network trained under ``diffusion`` settings, with DPM-Solver++ (2M) to step it."""
        return cls(
            unet=unet,
            scheduler=build_scheduler("dpmpp_2m", diffusion.num_timesteps),
            b=b,
            mode=diffusion.mode,
            objective=diffusion.objective,
            label_loss=diffusion.label_loss,
            clean_t=diffusion.clean_t,
            dihedral=dihedral,
            size_px=size_px,
            class_table=class_table.to_json(),
            bands=tuple(bands),
            value_range=tuple(value_range),
        )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str, **kwargs: Any) -> Self:
        """Load a saved folder: safetensors only, and from local files unless ``local_files_only=False`` is said."""
        kwargs = {"use_safetensors": True, "local_files_only": True, "low_cpu_mem_usage": False} | kwargs
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Save as a folder of JSON and safetensors."""
        super().save_pretrained(save_directory, **({"safe_serialization": True} | kwargs))

    @property
    def class_table(self) -> ClassTable:
        """Names and colours of the classes."""
        if self.config.class_table is None:
            raise ConfigError("this pipeline was built without a class_table; build it with ClassTable.to_json()")
        return ClassTable.from_json(self.config.class_table)

    def __call__(
        self,
        batch_size: int = 4,
        num_inference_steps: int = 20,
        seed: int = 0,
        soft_label: SoftLabelConfig | None = None,
        precision: Literal["fp32", "bf16"] = "fp32",
    ) -> JointSamples:
        """``batch_size`` pairs in one batch, stepped by ``self.scheduler``.

        Soft labels are the read-out p(y | x) where the model allows it, else the last step's softmax.
        """
        sampler = SamplerConfig(steps=num_inference_steps, micro_batch=batch_size, precision=precision)
        return self._sample(range(batch_size), seed, sampler, soft_label or self._default_soft_label(), self.scheduler)

    def sample(
        self,
        indices: Sequence[int] | np.ndarray,
        seed: int,
        sampler: SamplerConfig,
        soft_label: SoftLabelConfig,
        given: Given | None = None,
    ) -> JointSamples:
        """Pairs number ``indices`` of the endless sequence that (model, settings, seed) stand for.

        Row i depends on the model, the settings, ``seed`` and ``indices[i]``; its bits moreover on the shape of the
        micro-batch (always full: the last is padded), the number format and the device, not on its neighbours.
        ``given``: label maps that images are drawn for. Their soft label is the map where ``given.labels`` or
        soft_label.mode last_step say so, else that of the image as of any other.

        Raises:
            ConfigError: read-out, chains or label maps with a model trained in mode joint, or a step count the solver
                cannot do. DataError: not such maps.
        """
        scheduler = same_levels(self.scheduler, sampler.scheduler)
        return self._sample(indices, seed, sampler, soft_label, scheduler, given)

    def label(
        self,
        images: torch.Tensor,
        evaluations: int = 8,
        seed: int = 0,
        indices: Sequence[int] | np.ndarray | None = None,
        sampler: SamplerConfig | None = None,
        soft_label: SoftLabelConfig | None = None,
    ) -> torch.Tensor:
        """p(y | x) of images on the model scale ``(B, C, H, W)``: float32 ``(B, K, H, W)`` on the CPU.

        Any H and W that the network's stride divides. ``indices`` number the noise draws (default 0, 1, ...);
        ``sampler`` gives micro_batch and precision; ``soft_label`` asks for chains, or in place of ``evaluations`` for
        a read-out (default: the read-out).

        Raises:
            ConfigError: the model was trained in mode joint, or soft_label.mode is last_step, which images that were
                not generated lack. DataError: not such images.
        """
        self._needs_independent("p(y | x)")
        config = soft_label or SoftLabelConfig(mode="readout", evaluations=evaluations)
        if config.mode == "last_step":
            raise ConfigError(
                "soft_label.mode last_step is the label of an image while it is generated; for given images use "
                "readout or chains"
            )
        sampler = sampler or SamplerConfig(precision="fp32")
        if images.ndim != 4 or images.shape[1] != self.unet.config.bands or not images.is_floating_point():
            raise DataError(
                f"images are {images.dtype} {tuple(images.shape)}; expected float (B, {self.unet.config.bands}, H, W) "
                "on the model scale"
            )
        self.unet.check_size(*images.shape[2:])
        denoiser = self._denoiser(sampler)
        numbers = _numbers(indices, len(images))

        def run(at: np.ndarray) -> torch.Tensor:
            return self._soft_label(denoiser, images[at].to(denoiser.device), config, seed, numbers[at].tolist())

        return _in_micro_batches(len(images), sampler.micro_batch, run)

    def packaged(self, evaluations: int = 8, seed: int = 0, temperature: float = 1.0) -> PackagedLabeller:
        """p(y | x) as a module like a packaged student: raw images of any size to probabilities, exportable.

        At ``size_px`` it gives what ``label(images, evaluations, seed, indices=[0, 0, ...])`` gives, then tempered by
        ``p^(1/T)``. It holds a copy of the weights as they are now, float32 on the CPU, eval mode.

        Raises:
            ConfigError: the model was trained in mode joint; no evaluation; or a temperature that is not above 0.
        """
        self._needs_independent("p(y | x) as a segmenter")
        config = self.config
        low, high = config.value_range
        return PackagedLabeller(
            nn.Module.to(copy.deepcopy(self.unet), "cpu", torch.float32),
            objective=config.objective,
            label_loss=config.label_loss,
            b=config.b,
            clean_t=float(config.clean_t),
            turned=bool(config.dihedral),
            evaluations=evaluations,
            seed=seed,
            period_px=int(config.size_px),
            value_range=(float(low), float(high)),
            bands=config.bands,
            class_names=self.class_table.names,
            temperature=temperature,
        ).eval()

    def render(
        self,
        label_maps: np.ndarray,
        seed: int = 0,
        indices: Sequence[int] | np.ndarray | None = None,
        sampler: SamplerConfig | None = None,
        guidance: float = 1.0,
    ) -> torch.Tensor:
        """Images for given class maps uint8 ``(B, H, W)`` (IGNORE: unknown): float32 ``(B, C, H, W)`` in [-1, 1].

        A map that is unknown everywhere leaves its row a sample of p(x, y). Descriptors, where the network is told
        such, are those of training images, whatever these show. ``guidance``: see ``RenderConfig``.

        Raises:
            ConfigError: the model was trained in mode joint. DataError: not such maps.
        """
        sampler = sampler or SamplerConfig(precision="fp32")
        numbers = np.arange(len(label_maps)) if indices is None else indices
        scheduler = same_levels(self.scheduler, sampler.scheduler)
        last = SoftLabelConfig(mode="last_step")
        return self._sample(numbers, seed, sampler, last, scheduler, Given(label_maps, guidance=guidance)).images

    def _sample(
        self,
        indices: Sequence[int] | np.ndarray,
        seed: int,
        sampler: SamplerConfig,
        soft_label: SoftLabelConfig,
        scheduler: Any,
        given: Given | None = None,
    ) -> JointSamples:
        if soft_label.mode != "last_step":
            self._needs_independent(f"soft_label.mode {soft_label.mode}")
        denoiser, numbers = self._denoiser(sampler), _numbers(indices, len(indices))
        bands, num_classes = int(self.unet.config.bands), int(self.unet.config.num_classes)
        size = (int(self.config.size_px),) * 2
        if given is not None:
            self._needs_independent("p(x | y)")
            given.check(len(numbers), num_classes, bands)
            self.unet.check_size(*(size := given.maps_BHW.shape[1:]))

        def run(at: np.ndarray) -> torch.Tensor:
            own, maps = numbers[at].tolist(), None if given is None else given.rows(at)
            images, soft = draw_pairs(
                denoiser,
                scheduler,
                sampler.steps,
                bands=bands,
                num_classes=num_classes,
                size=size,
                seed=seed,
                indices=own,
                given=maps,
                clean_t=float(self.config.clean_t),
            )
            if soft_label.mode != "last_step":
                soft = self._soft_label(denoiser, images, soft_label, seed, own)
            if maps is not None and (maps.labels or soft_label.mode == "last_step"):
                soft = maps.label(soft)  # the last step had the map as its input, and was not taught to copy it
            return torch.cat([images, soft], 1)

        pairs = _in_micro_batches(len(numbers), sampler.micro_batch, run)
        return JointSamples(pairs[:, :bands].contiguous(), pairs[:, bands:].contiguous())

    def _soft_label(
        self, denoiser: Denoiser, images: torch.Tensor, config: SoftLabelConfig, seed: int, indices: Sequence[int]
    ) -> torch.Tensor:
        num_classes, clean_t = int(self.unet.config.num_classes), float(self.config.clean_t)
        turned = bool(self.config.dihedral)
        if config.mode == "readout":
            return readout(
                denoiser,
                images,
                num_classes=num_classes,
                clean_t=clean_t,
                evaluations=config.evaluations,
                seed=seed,
                indices=indices,
                turned=turned,
            )
        return chains(
            denoiser,
            same_levels(self.scheduler, "dpmpp_2m"),
            images,
            num_classes=num_classes,
            clean_t=clean_t,
            num_chains=config.evaluations,
            steps=config.chain_steps,
            seed=seed,
            indices=indices,
            turned=turned,
        )

    def _default_soft_label(self) -> SoftLabelConfig:
        return SoftLabelConfig(mode="readout" if self.config.mode == "independent" else "last_step")

    def _needs_independent(self, what: str) -> None:
        if self.config.mode != "independent":
            raise ConfigError(
                f"{what} needs a model trained with diffusion.mode independent; this one has mode {self.config.mode}: "
                "train another, or draw pairs with soft_label.mode last_step"
            )

    def _denoiser(self, sampler: SamplerConfig) -> Denoiser:
        dtype = torch.bfloat16 if sampler.precision == "bf16" else torch.float32
        device = next(self.unet.parameters()).device
        # in-place changes of the weights count their versions up, so a stale copy is never used
        key = (dtype, device, id(self.unet), tuple(p._version for p in self.unet.parameters()))
        if self._prepared is None or self._prepared[0] != key:
            network = copy.deepcopy(self.unet).eval().requires_grad_(False)
            # channels_last: 1.1 times faster on the CPU, more on GPUs; nn.Module.to, since that of diffusers warns
            nn.Module.to(network, dtype)
            self._prepared = (key, nn.Module.to(network, memory_format=torch.channels_last))
        asked = (self.config.objective, self.config.label_loss, self.config.b)
        table = self.unet.table  # in float32, whatever the copy is in
        return Denoiser(self._prepared[1], *asked, device, clip=sampler.clip, dtype=dtype, table=table)


@dataclass(frozen=True)
class OpenModel:
    """A verified model: the pipeline, its digest, and what its writer recorded."""

    pipeline: JointDiffusionPipeline
    digest: str
    record: dict[str, Any]


def save_model(pipeline: JointDiffusionPipeline, url: str, record: dict[str, Any]) -> str:
    """Write the pipeline's folder to ``url`` (a path or ``s3://``), ``model.json`` last; returns the model digest.

    The digest covers the bytes of every file, not ``record``. The same model again returns what stands.

    Raises:
        ConflictError: something else stands at ``url``.
    """
    with tempfile.TemporaryDirectory() as folder:
        pipeline.save_pretrained(folder)
        return put_model(Path(folder), url, record)


def open_model(url: str) -> OpenModel:
    """Load a model from a path or ``s3://`` URL, every byte checked before anything is built from it.

    Raises:
        IntegrityError: no complete model is there, or it was altered.
    """
    with tempfile.TemporaryDirectory() as folder, without_bars():
        digest, record = fetch_model(url, Path(folder))
        return OpenModel(JointDiffusionPipeline.from_pretrained(folder), digest, record)


def _numbers(indices: Sequence[int] | np.ndarray | None, count: int) -> np.ndarray:
    numbers = np.arange(count) if indices is None else np.asarray(indices, dtype=np.int64)
    if numbers.shape != (count,) or not count:
        raise DataError(f"indices have shape {numbers.shape}; expected ({count},), at least one")
    return numbers


@torch.inference_mode()
def _in_micro_batches(count: int, size: int, run: Any) -> torch.Tensor:
    """``run(positions) -> rows`` over full micro-batches, the padding cut off; float32 on the CPU."""
    return torch.cat([run(at)[:kept].float().cpu() for at, kept in micro_batches(count, size)])
