"""Other views of an image that show the same things: a part of it enlarged, all of it brighter or darker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from dakter.config import Config, setting


class ViewConfig(Config):
    """Strengths; zero switches a part off."""

    zoom_share: float = setting(0.5, "share of rows that are cropped and enlarged", ge=0, le=1)
    zoom_max: float = setting(1.6, "largest enlargement; drawn log-uniformly from 1 on", ge=1, le=8)
    gain: float = setting(0.15, "brightness factor exp(u), u uniform in +-gain, of the stored intensity", ge=0, le=2)
    gamma: float = setting(0.15, "exponent exp(u), u uniform in +-gamma, of the stored intensity", ge=0, le=2)

    @property
    def changes(self) -> bool:
        """Whether any part is on."""
        return self.zoom_share > 0 or self.gain > 0 or self.gamma > 0


class Crop(NamedTuple):
    """A part of an image, in pixels."""

    top: int
    left: int
    rows: int
    columns: int


def draw_crop(draws: np.random.Generator, config: ViewConfig, height: int, width: int) -> Crop | None:
    """The part to enlarge, of the shape of the whole; None: the image stays as it is."""
    if draws.random() >= config.zoom_share:
        return None
    factor, corner = float(np.exp(draws.uniform(0.0, np.log(config.zoom_max)))), draws.random(2)
    rows, columns = max(1, round(height / factor)), max(1, round(width / factor))
    return Crop(int(corner[0] * (height - rows + 1)), int(corner[1] * (width - columns + 1)), rows, columns)


def enlarge(values: torch.Tensor, crop: Crop, mode: Literal["bilinear", "nearest-exact"] = "bilinear") -> torch.Tensor:
    """Values ``(K, H, W)`` of a part, at the size of the whole; class maps want ``nearest-exact``."""
    part = values[None, :, crop.top : crop.top + crop.rows, crop.left : crop.left + crop.columns]
    corners = False if mode == "bilinear" else None
    return F.interpolate(part, values.shape[1:], mode=mode, align_corners=corners)[0]


def brighten(images: torch.Tensor, draws: Sequence[np.random.Generator], config: ViewConfig) -> torch.Tensor:
    """Images float32 ``(B, C, H, W)`` in [-1, 1], each by a gain and an exponent of its own, in the same range."""
    gain, gamma = (
        torch.tensor([np.exp(rng.uniform(-s, s)) for rng in draws], dtype=images.dtype)[:, None, None, None]
        for s in (config.gain, config.gamma)
    )
    intensity = (((images + 1.0) / 2.0).clamp(0.0, 1.0) ** gamma * gain).clamp(0.0, 1.0)
    return intensity * 2.0 - 1.0
