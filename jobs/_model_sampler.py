"""A trained joint model as the corpus wants it: a sampler that is made anew in each process from the model's URL."""

from __future__ import annotations

import os
import tempfile
import uuid
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from dakter import schema, storage
from dakter.corpus.content import Content
from dakter.diffusion.label_maps import MapPool
from dakter.diffusion.sampler import SamplerConfig
from dakter.diffusion.softlabel import SoftLabelConfig
from dakter.errors import ConfigError, IntegrityError
from jobs._label_maps import MapSource, check_label


class PlacedModel:
    """A trained joint model that is put in its place when it is first used.

    Args:
        url: the model's folder; downloaded once a machine if remote.
        threads: torch threads.
        device: where it computes; it moves there at its first use, so that a driver without a GPU may hold one.

    Attributes:
        digest, record: see ``dakter.diffusion.pipeline.OpenModel``.
        content: what one pair of it is.
        mode: ``diffusion.mode`` that it was trained in.
        turned, told: it learned from turned images; it is told descriptors.

    Raises:
        IntegrityError: no complete model is there, or it was altered.
    """

    def __init__(self, url: str, threads: int, device: str):
        from dakter.diffusion.pipeline import open_model  # with all of diffusers, where a model is really wanted

        try:
            opened = open_model(_cached(url))
        except IntegrityError:  # a copy that lost files (folders for temporary files are swept) is fetched again
            if not storage.is_remote(url):
                raise
            storage.remove_folder(_cached(url))
            opened = open_model(_cached(url))
        self._pipeline = cast(Any, opened.pipeline)  # diffusers' base class is partly untyped
        self._threads, self._device, self._ready = threads, device, False
        self.digest, self.record = opened.digest, dict(opened.record)
        config = self._pipeline.config
        size, (low, high) = int(config["size_px"]), config["value_range"]
        table = opened.pipeline.class_table
        self.content = Content(table, tuple(config["bands"]), size, size, (float(low), float(high)))
        self.mode = str(config["mode"])
        self.turned = bool(config["dihedral"])
        self.told = opened.pipeline.unet.table is not None

    @property
    def pipeline(self) -> Any:
        """The ``JointDiffusionPipeline``, ready to compute."""
        if not self._ready:
            torch.set_num_threads(self._threads)
            self._pipeline.to(self._device)
            self._ready = True
        return self._pipeline


class ModelSampler:
    """A trained joint model as the corpus wants it: sample indices to stored pairs.

    Args:
        url, threads, device: see ``PlacedModel``.
        seed: of the corpus.
        maps: where the label maps stand that some of its images are drawn for; None: all are drawn with their labels.

    Attributes:
        pool: those label maps.

    Raises:
        ConfigError: label maps for a model trained in mode joint; and see ``MapSource.open``.
    """

    def __init__(
        self,
        url: str,
        sampler: SamplerConfig,
        soft_label: SoftLabelConfig,
        seed: int,
        threads: int,
        device: str,
        maps: MapSource | None = None,
    ):
        self._model = PlacedModel(url, threads, device)
        self._settings, self._seed = (sampler, soft_label), seed
        self.record: dict[str, Any] = self._model.record
        self.micro_batch = sampler.micro_batch
        self.identity = {
            "model_digest": self._model.digest,
            "sampler": sampler.dump(),
            "soft_label": soft_label.dump(),
            "threads": threads,
        }
        self.content = self._model.content
        self.pool: MapPool | None = None
        if maps is not None:
            check_mode(self._model.mode, url, RENDERING)
            check_label(maps.config, soft_label)
            about = {"told": self._model.told, "turned": self._model.turned}
            self.pool, digests = maps.open(self.content, seed=seed, **about)
            self.identity["render"] = {**maps.config.dump(), **digests}

    def __call__(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        given = self.pool.give(indices) if self.pool else None
        pairs = self._model.pipeline.sample(indices, self._seed, *self._settings, given)
        return schema.to_stored(numpy_of(pairs.images)), schema.soft_to_stored(numpy_of(pairs.soft_labels))


LABELLING, RENDERING = "label images", "draw images for label maps"


def check_mode(mode: str, where: str, what: str) -> None:
    """Raise ConfigError unless a model of ``diffusion.mode`` can do ``what``; ``where`` names it."""
    if mode != "independent":
        raise ConfigError(
            f"{where}: diffusion.mode {mode}; expected independent: only a model trained so can {what}. Train one "
            f"(--diffusion.mode independent), or leave {_WITHOUT[what]} out"
        )


_WITHOUT = {LABELLING: "this stage", RENDERING: "render.quotas and render.others"}


def numpy_of(values: Any) -> np.ndarray:
    """A tensor as float32 on the CPU."""
    return torch.as_tensor(values).float().cpu().numpy()


def _cached(url: str) -> str:
    """A local copy of a remote model folder, one a machine and model; ``open_model`` checks it each time."""
    if not storage.is_remote(url):
        return url
    digest = storage.read_json(storage.join(url, "model.json"))["digest"]
    folder = Path(tempfile.gettempdir()) / f"dakter-{os.getuid()}" / "models" / str(digest)
    if not folder.is_dir():
        fresh = storage.download_folder(url, folder.with_name(f"{digest}.{uuid.uuid4().hex}"))
        try:
            os.rename(fresh, folder)
        except OSError:  # another worker of this machine was first
            storage.remove_folder(str(fresh))
    return str(folder)
