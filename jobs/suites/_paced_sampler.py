"""A sampler without a model for the suites: realistic tiles at a pace that is asked for."""

from __future__ import annotations

import copy
import time
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter

from dakter import rng
from dakter.corpus.content import Content
from dakter.schema import OSD, soft_to_stored

# Softmax temperature of ``soft_fields`` by the entropy it gives, in nats a pixel.
SHARP, SOFT = 20.0, 7.0


def soft_fields(count: int, size_px: int, sharpness: float, seed: int = 0) -> np.ndarray:
    """Smooth random class probabilities, float32 ``(count, 5, size_px, size_px)``, as a segmentation model gives them.

    Gaussian fields with a correlation length of a twentieth of the tile, times ``sharpness``, through a softmax.
    """
    fields = []
    for index in range(count):
        noise = rng.numpy_rng(seed, "suites/soft", index=index).standard_normal((len(OSD), size_px, size_px))
        smooth = np.stack([gaussian_filter(plane, size_px / 20, mode="wrap") for plane in noise])
        logits = smooth / smooth.std() * sharpness
        odds = np.exp(logits - logits.max(axis=0))
        fields.append(odds / odds.sum(axis=0))
    return np.stack(fields).astype(np.float32)


def entropy_nats(p_NKHW: np.ndarray) -> float:
    """Mean entropy of class probabilities ``(N, K, H, W)``, in nats a pixel."""
    return float(-(p_NKHW * np.log(np.maximum(p_NKHW, 1e-30))).sum(axis=1).mean())


class PacedSampler:
    """Speckled images with smooth soft labels; every image carries its index, so that no two are equal.

    Args:
        size_px: rows and columns of a tile.
        micro_batch: samples of a call.
        per_second: the pace: a call takes at least ``micro_batch / per_second`` seconds; 0: as fast as it can.
        bases: different tiles; the samples cycle through them.
    """

    def __init__(self, size_px: int = 256, micro_batch: int = 32, per_second: float = 0.0, bases: int = 32):
        self.micro_batch = micro_batch
        self.content = Content(OSD, ("vv",), size_px, size_px, (-30.0, 0.0))
        self.identity: dict[str, Any] = {"model_digest": "paced", "bases": bases}
        self._per_second = per_second
        probabilities = soft_fields(bases, size_px, (SHARP + SOFT) / 2)
        levels = np.array([110.0, 40.0, 60.0, 230.0, 170.0])  # mean image value of each class
        speckle = rng.numpy_rng(0, "suites/speckle").gamma(10.0, 0.1, (bases, 1, size_px, size_px))
        mean = np.einsum("nkhw,k->nhw", probabilities, levels)[:, None]
        self._images = np.clip(mean * speckle, 0, 255).astype(np.uint8)
        self._soft = soft_to_stored(probabilities)

    def at(self, per_second: float) -> PacedSampler:
        """The same sampler at another pace."""
        other = copy.copy(self)
        other._per_second = per_second
        return other

    def __call__(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        begin = time.monotonic()
        rows = indices % len(self._images)
        images, soft = self._images[rows], self._soft[rows]
        images.reshape(len(images), -1)[:, :8] = indices.astype("<i8")[:, None].view(np.uint8)
        call_s = len(indices) / self._per_second if self._per_second else 0.0
        time.sleep(max(0.0, call_s - (time.monotonic() - begin)))
        return images, soft
