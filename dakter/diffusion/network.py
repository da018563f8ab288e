"""The joint network: one U-Net over image and label map together, told the noise level of each.

Own residual blocks (GroupNorm, SiLU, 3x3 convolutions, scale and shift by the noise levels) on a pixel-unshuffle stem:
at 64 px and widths (64, 96, 144) that is several times less work than a plain U-Net at full resolution, and it
learned better per CPU-second than every cheaper variant tried.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import nn
from torch.nn import functional

from dakter.config import Config, setting
from dakter.errors import ConfigError


class NetworkConfig(Config):
    """Size of the joint network, and what it is told."""

    later: ClassVar[tuple[str, ...]] = ("descriptors",)

    widths: tuple[int, ...] = setting(
        (64, 96, 144), "channels of each level, finest first; multiples of 8", unit="channels"
    )
    blocks: tuple[int, ...] = setting(
        (1, 2, 2), "residual blocks of each level, on the way down and again on the way up", unit="blocks"
    )
    unshuffle: int = setting(
        2, "edge of the pixel blocks folded into channels by the stem; 1: none", unit="px", ge=1, le=8
    )
    attention: bool = setting(False, "self-attention at the lowest level")
    dropout: float = setting(0.0, "dropout inside residual blocks", ge=0, lt=1)
    descriptors: bool = setting(
        False,
        "tell the network brightness, contrast and roughness of the clean image; samples take those of training "
        "images, of which there should be hundreds, labelled or not",
    )


@dataclass
class JointOutput(BaseOutput):
    """``image`` (B, C, H, W): v or the clean image; ``logits`` (B, K, H, W) of the label."""

    image: torch.Tensor
    logits: torch.Tensor


def level_features(t_B: torch.Tensor, count: int) -> torch.Tensor:
    """Sines and cosines of a noise level in [0, 1], float32 ``(B, count)``; wavelengths from 2 pi down to 2 pi / 1000.

    (Vaswani et al. 1706.03762 on 1000 t, as diffusion models commonly have it.)
    """
    half = count // 2
    frequency = torch.exp(-math.log(1000) * torch.arange(half, device=t_B.device) / max(half - 1, 1)) * 1000
    angle = t_B.float()[:, None] * frequency[None]
    return torch.cat([angle.sin(), angle.cos()], dim=1)


NUM_DESCRIPTORS = 3  # of each band
TABLE_SIZE = 1024
_FLOOR = 0.01  # of contrast and roughness, in units of the model scale: 1.3 gray levels of 256


def describe(x_BCHW: torch.Tensor) -> torch.Tensor:
    """Descriptors of images on the model scale: float32 ``(B, 3 C)``.

    Mean, log of the standard deviation, and log of the root mean square difference of neighbours (over as many pairs
    as there are pixels), of each band. They do not change when an image is turned or mirrored.
    """
    x = x_BCHW.float()
    mean = x.mean((2, 3), keepdim=True)
    contrast = (x - mean).square().mean((2, 3)).sqrt()
    squares = x.diff(dim=2).square().sum((2, 3)) + x.diff(dim=3).square().sum((2, 3))
    rough = (squares / (2 * x.shape[2] * x.shape[3])).sqrt()
    return torch.cat([mean[:, :, 0, 0], (contrast + _FLOOR).log(), (rough + _FLOOR).log()], dim=1)


def untold(table: torch.Tensor | None, x_BCHW: torch.Tensor) -> torch.Tensor | None:
    """In place of descriptors where a network with such a ``table`` is told nothing; None for one that never is."""
    return None if table is None else table.new_zeros(x_BCHW.shape[0], table.shape[1])


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(max(1, channels // 8), channels)


class ResidualBlock(nn.Module):
    """x + f(x), f = two normalised convolutions; the second norm is scaled and shifted by the noise levels."""

    def __init__(self, inputs: int, outputs: int, features: int, dropout: float):
        super().__init__()
        self.norm1, self.norm2 = _norm(inputs), _norm(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.levels = nn.Linear(features, 2 * outputs)
        self.dropout = nn.Dropout(dropout)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        nn.init.zeros_(self.conv2.weight)  # the block starts as the identity

    def forward(self, x: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        h = self.conv1(functional.silu(self.norm1(x)))
        scale, shift = self.levels(features)[:, :, None, None].chunk(2, dim=1)
        h = functional.silu(torch.addcmul(shift, self.norm2(h), 1 + scale))
        return self.skip(x) + self.conv2(self.dropout(h))


class SelfAttention(nn.Module):
    """x + attention over all places of the map, heads of 8 to 48 channels."""

    def __init__(self, channels: int):
        super().__init__()
        self.heads = next(h for h in range(max(1, channels // 48), channels + 1) if channels % h == 0)
        self.norm, self.qkv, self.out = (
            _norm(channels),
            nn.Conv2d(channels, 3 * channels, 1),
            nn.Conv2d(channels, channels, 1),
        )
        nn.init.zeros_(self.out.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, channels, height, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(batch, 3, self.heads, channels // self.heads, height * width)
        q, k, v = qkv.transpose(-1, -2).unbind(1)
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(-1, -2)
        return x + self.out(mixed.reshape(batch, channels, height, width))


class Level(nn.Module):
    """``blocks`` residual blocks in a row; the first changes the width."""

    def __init__(self, inputs: int, outputs: int, blocks: int, features: int, dropout: float):
        super().__init__()
        self.blocks = nn.ModuleList(
            ResidualBlock(inputs if i == 0 else outputs, outputs, features, dropout) for i in range(blocks)
        )

    def forward(self, x: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x, features)
        return x


class JointUNet(ModelMixin, ConfigMixin):
    """p of (image, label map) at any pair of noise levels.

    Group normalisation takes mean and scale of features out of an image (Song and Ermon 2019, 1907.05600, give the
    means back to instance normalisation for that), so that brightness, contrast and roughness of the whole image are
    hard to tell from its noise. Told the descriptors d of the clean image the network is p(x, y | d), and samples take
    d from a table of training images. Where an image is given and its label asked for nothing is told (zeros, which no
    image has): with few labels d is a short way to a wrong answer, and images may be larger than those of training.

    Args:
        bands: image bands C.
        num_classes: classes K.
        widths, blocks, unshuffle, attention, dropout, descriptors: see NetworkConfig.

    H and W must be multiples of ``stride``. With ``descriptors`` the buffer ``table`` ``(TABLE_SIZE, 3 C)`` holds those
    of training images, for samples to draw from (NaN until training sets it); without it is None.
    """

    table: torch.Tensor | None

    @register_to_config
    def __init__(
        self,
        bands: int = 1,
        num_classes: int = 5,
        widths: tuple[int, ...] = (64, 96, 144),
        blocks: tuple[int, ...] = (1, 2, 2),
        unshuffle: int = 2,
        attention: bool = False,
        dropout: float = 0.0,
        descriptors: bool = False,
    ):
        super().__init__()
        if not widths or any(width < 8 or width % 8 for width in widths):
            raise ConfigError(f"network.widths is {tuple(widths)}; expected at least one level, each a multiple of 8")
        if len(blocks) != len(widths) or min(blocks) < 1:
            raise ConfigError(
                f"network.blocks is {tuple(blocks)}; expected one number, at least 1, for each of {tuple(widths)}"
            )
        self.bands, self.num_classes, self.unshuffle = bands, num_classes, unshuffle
        self.stride = unshuffle * 2 ** (len(widths) - 1)
        base, folded = widths[0], (bands + num_classes) * unshuffle**2
        features = 4 * base
        self.num_level_features = base
        told = 2 * base + (NUM_DESCRIPTORS * bands if descriptors else 0)
        unset = torch.full((TABLE_SIZE, NUM_DESCRIPTORS * bands), torch.nan)
        self.register_buffer("table", unset if descriptors else None)
        self.embed = nn.Sequential(nn.Linear(told, features), nn.SiLU(), nn.Linear(features, features), nn.SiLU())
        self.stem = nn.Conv2d(folded, base, 3, padding=1)
        self.down, self.shrink = nn.ModuleList(), nn.ModuleList()
        for i, width in enumerate(widths[:-1]):
            self.down.append(Level(width, width, blocks[i], features, dropout))
            self.shrink.append(nn.Conv2d(width, widths[i + 1], 3, stride=2, padding=1))
        self.bottom = Level(widths[-1], widths[-1], blocks[-1], features, dropout)
        self.attend = SelfAttention(widths[-1]) if attention else nn.Identity()
        self.bottom_out = Level(widths[-1], widths[-1], blocks[-1], features, dropout)
        self.up, self.grow = nn.ModuleList(), nn.ModuleList()
        for i in reversed(range(len(widths) - 1)):
            self.grow.append(nn.Conv2d(widths[i + 1], widths[i], 1))
            self.up.append(Level(2 * widths[i], widths[i], blocks[i], features, dropout))
        self.out_norm = _norm(base)
        self.out = nn.Conv2d(base, folded, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        assert self.out.bias is not None
        nn.init.zeros_(self.out.bias)

    @classmethod
    def build(cls, config: NetworkConfig, bands: int, num_classes: int) -> JointUNet:
        """The network of ``config`` for ``bands`` image bands and ``num_classes`` classes."""
        return cls(bands=bands, num_classes=num_classes, **config.model_dump())

    def check_size(self, height: int, width: int) -> None:
        """Raise ConfigError unless images of this size pass through every level."""
        if height % self.stride or width % self.stride:
            raise ConfigError(
                f"images are {height} x {width} px; expected multiples of {self.stride} px (network.unshuffle times 2 "
                "for every level after the first): change tiles.size_px or network.widths"
            )

    def forward(
        self,
        x_BCHW: torch.Tensor,
        y_BKHW: torch.Tensor,
        t_x_B: torch.Tensor,
        t_y_B: torch.Tensor,
        descriptors_BD: torch.Tensor | None = None,
    ) -> JointOutput:
        """Noisy image and label with their levels (0 clean, 1 pure noise) to both predictions.

        ``descriptors``: of clean images (``describe``), rows of ``table``, or ``untold``.
        """
        assert (self.table is None) == (descriptors_BD is None), "descriptors are for a network that is told them"
        count, dtype = self.num_level_features, self.stem.weight.dtype
        levels = torch.cat([level_features(t_x_B, count), level_features(t_y_B, count)], dim=1)
        if descriptors_BD is not None:
            levels = torch.cat([levels, descriptors_BD], dim=1)
        features = self.embed(levels.to(dtype))
        h = self.stem(functional.pixel_unshuffle(torch.cat([x_BCHW, y_BKHW], 1), self.unshuffle))
        kept = []
        for level, shrink in zip(self.down, self.shrink, strict=True):
            kept.append(h := level(h, features))
            h = shrink(h)
        h = self.bottom_out(self.attend(self.bottom(h, features)), features)
        for grow, level in zip(self.grow, self.up, strict=True):
            # the 1x1 convolution before the enlargement costs a quarter of one after it and gives the same
            h = functional.interpolate(grow(h), scale_factor=2, mode="nearest")
            h = level(torch.cat([h, kept.pop()], 1), features)
        out = functional.pixel_shuffle(self.out(functional.silu(self.out_norm(h))), self.unshuffle)
        return JointOutput(image=out[:, : self.bands], logits=out[:, self.bands :])
