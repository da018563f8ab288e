"""Steering: label maps that images are drawn for, so that rare classes get the share they need.

A generator draws classes about as often as its training data have them. p(x | y) of the same network draws an image
for a label map that is chosen, and a label map with a given class can always be chosen: masks of training tiles, or
the likeliest classes of unlabelled tiles that the model labelled. Each is turned and mirrored as the model learned
to, and a network that is told descriptors is told those of the map's own image.

Which map sample ``i`` gets, if any, follows from (seed, i) alone. Shares hold in every run of consecutive samples, not
only on average: kinds are dealt out along a golden-ratio sequence, whose count of a kind in n samples is off its share
by something like log n (a few samples in a million).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Self

import numpy as np
import torch
from pydantic import field_validator, model_validator

from dakter.config import Config, setting
from dakter.diffusion.balance import enter_labels
from dakter.errors import ConfigError, DataError
from dakter.rng import derive_seed, numpy_rng
from dakter.schema import IGNORE
from dakter.turns import NUM_TURNS, turn

_ROUNDING = 1e-9
_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio, made odd: i * _GOLDEN modulo 2^64 visits evenly (Weyl)
_WHOLE = 1 << 64
Describe = Callable[[np.ndarray], np.ndarray]


class RenderConfig(Config):
    """How many samples are drawn for chosen label maps; the others are drawn from p(x, y), label and all."""

    quotas: dict[str, float] = setting(
        {}, "class: share of all samples drawn for a label map that holds it, e.g. {oil spill: 0.5}"
    )
    others: float = setting(0.0, "share of samples drawn for any label map, whatever its classes", ge=0, le=1)
    maps: Literal["masks", "labelled", "both"] = setting(
        "masks",
        "where label maps come from. masks: labelled training tiles; labelled: likeliest classes of unlabelled tiles "
        "in paths.labelled; both",
    )
    label: Literal["map", "image"] = setting(
        "map",
        "soft label of a sample drawn for a label map. map: that map, for which it was drawn; image: what soft_label "
        "says of any image, by which a rare class may be lost again",
    )
    guidance: float = setting(
        1.0,
        "how strongly images follow their map: the step from p(x) to p(x given y), times this (classifier-free "
        "guidance, 2207.12598); other than 1 costs a second evaluation",
        gt=0,
        le=20,
    )
    contains_px: int = setting(4, "pixels of a class from which on a label map holds it", unit="px", ge=1)
    most_maps: int = setting(
        4096,
        "label maps kept in memory for each class of quotas, and for others; drawn by seed if there are more",
        ge=1,
    )

    @field_validator("quotas")
    @classmethod
    def _in_one_order(cls, quotas: dict[str, float]) -> dict[str, float]:
        return dict(sorted(quotas.items()))  # the order deals samples out, and JSON does not keep it

    @model_validator(mode="after")
    def _shares(self) -> Self:
        if not all(0 < share <= 1 for share in self.quotas.values()):
            raise ValueError(f"shares above 0, up to 1, not quotas {self.quotas}")
        if (total := sum(self.shares)) > 1 + _ROUNDING:
            raise ValueError(f"quotas and others that sum to 1 at the most, not {total:g}")
        return self

    @property
    def shares(self) -> tuple[float, ...]:
        """Of the classes of ``quotas``, by name, then of ``others``."""
        return (*self.quotas.values(), self.others)

    @property
    def renders(self) -> bool:
        """Whether any sample is drawn for a label map."""
        return sum(self.shares) > 0


class Given(NamedTuple):
    """Label maps uint8 ``(B, H, W)``; a row of IGNORE alone has none, and its label is drawn with its image.

    ``descriptors``: float32 ``(B, 3 C)`` of ``describe``, that images of rows with a map shall have; None: of training
    images, as in the other rows. ``labels``: soft labels of rows with a map are that map, where it is known.
    ``guidance``: see ``RenderConfig``.
    """

    maps_BHW: np.ndarray
    descriptors: np.ndarray | None = None
    labels: bool = True
    guidance: float = 1.0

    @property
    def have_map_B(self) -> np.ndarray:
        """Which rows have a map, bool ``(B,)``."""
        return np.asarray((self.maps_BHW != IGNORE).any(axis=(1, 2)))

    def check(self, count: int, num_classes: int, bands: int) -> None:
        """Raise DataError unless these are ``count`` maps of so many classes, and of images of so many bands."""
        maps, told = self.maps_BHW, self.descriptors
        if maps.ndim != 3 or maps.dtype != np.uint8 or len(maps) != count:
            raise DataError(f"label maps are {maps.dtype} {maps.shape}; expected uint8 ({count}, H, W)")
        if unknown := sorted(set(np.unique(maps).tolist()) - {*range(num_classes), IGNORE}):
            raise DataError(f"label maps hold {unknown}; expected classes 0 to {num_classes - 1}, or {IGNORE}")
        if told is not None and (told.dtype != np.float32 or told.shape != (count, 3 * bands)):
            raise DataError(f"descriptors are {told.dtype} {told.shape}; expected float32 ({count}, {3 * bands})")

    def rows(self, at: np.ndarray) -> Given:
        """Those rows, in that order."""
        told = None if self.descriptors is None else self.descriptors[at]
        return self._replace(maps_BHW=self.maps_BHW[at], descriptors=told)

    def label(self, soft_BKHW: torch.Tensor) -> torch.Tensor:
        """Soft labels ``(B, K, H, W)`` with the map in its place, 0 and 1, where one is known."""
        maps = torch.from_numpy(self.maps_BHW).to(soft_BKHW.device)
        sure = (enter_labels(maps, soft_BKHW.shape[1], 1.0) + 1) / 2
        return torch.where(maps[:, None] != IGNORE, sure, soft_BKHW)


@dataclass(frozen=True)
class MapPool:
    """Label maps to choose from.

    Attributes:
        maps: uint8 ``(M, H, W)``, square.
        descriptors: of the image that each belongs to, float32 ``(M, 3 C)``; None: nothing is told.
        kinds: which maps may be given to samples of each kind: int64 rows of ``maps``; the classes of
            ``RenderConfig.quotas`` in order, then any.
        config: shares of the kinds, and how images are drawn and labelled.
        seed: of the choice.
        turned: maps are turned and mirrored.
    """

    maps: np.ndarray
    descriptors: np.ndarray | None
    kinds: tuple[np.ndarray, ...]
    config: RenderConfig
    seed: int
    turned: bool

    def give(self, indices: np.ndarray) -> Given:
        """Label maps of samples, by their indices."""
        maps = np.full((len(indices), *self.maps.shape[1:]), IGNORE, np.uint8)
        told = None if self.descriptors is None else np.zeros((len(indices), self.descriptors.shape[1]), np.float32)
        for row, (index, kind) in enumerate(
            zip(indices, kinds_of(self.config.shares, self.seed, indices), strict=True)
        ):
            if kind == len(self.kinds):
                continue
            draws = numpy_rng(self.seed, "render/map", index=int(index))
            chosen = int(draws.choice(self.kinds[kind]))
            which = int(draws.integers(NUM_TURNS)) if self.turned else 0
            maps[row] = turn(torch.from_numpy(self.maps[chosen]), which).numpy()
            if told is not None and self.descriptors is not None:
                told[row] = self.descriptors[chosen]
        return Given(maps, told, labels=self.config.label == "map", guidance=self.config.guidance)


def kinds_of(shares: Sequence[float], seed: int, indices: Sequence[int] | np.ndarray) -> np.ndarray:
    """Which of so many kinds with these shares each sample is, int64; ``len(shares)``: none of them."""
    start = derive_seed(seed, "render/kind")
    place = [(start + int(index) * _GOLDEN) % _WHOLE / _WHOLE for index in indices]
    return np.searchsorted(np.cumsum(shares), place, side="right")


class Candidates:
    """Label maps on offer, piece by piece; as many are kept as ``most_maps`` of each kind.

    Args:
        config: what is wanted.
        class_names: of the classes, in order.
        seed: of the choice where there are more.
        describe: stored images to the descriptors that the network is told, float32 ``(N, 3 C)``; None: it is told
            nothing.

    Raises:
        ConfigError: a quota of an unknown class.
    """

    def __init__(self, config: RenderConfig, class_names: Sequence[str], seed: int, describe: Describe | None = None):
        if unknown := sorted(set(config.quotas) - set(class_names)):
            raise ConfigError(
                f"render.quotas names {', '.join(unknown)}; expected some of the classes {', '.join(class_names)}"
            )
        self._config, self._seed, self._describe = config, seed, describe
        self._classes = [list(class_names).index(name) for name in config.quotas]
        self._most_px = np.zeros(len(self._classes), np.int64)
        self._maps, self._descriptors = list[np.ndarray](), list[np.ndarray]()
        self._ranks, self._wanted = np.empty(0, np.int64), np.empty((0, len(config.shares)), bool)
        self._offered = 0

    def offer(self, images: np.ndarray, maps: np.ndarray, source: str) -> None:
        """Take maps uint8 ``(N, H, W)`` of stored images ``(N, C, H, W)``; all of one ``source`` in one order.

        Those without a labelled pixel are left out. Raises DataError if they are not square.
        """
        if maps.shape[1] != maps.shape[2]:
            raise DataError(f"label maps are {maps.shape[1:]}; expected square ones, which can be turned")
        pixels = np.stack([(maps == k).sum(axis=(1, 2)) for k in self._classes] or [np.empty(len(maps))], axis=1)
        if self._classes:
            self._most_px = np.maximum(self._most_px, pixels.max(axis=0, initial=0))
        some = (maps != IGNORE).any(axis=(1, 2))
        holds = pixels[:, : len(self._classes)] >= self._config.contains_px
        ranks = [derive_seed(self._seed, f"render/{source}", index=self._offered + i) for i in range(len(maps))]
        self._offered += len(maps)
        self._ranks = np.concatenate([self._ranks, np.array(ranks, np.int64)])
        self._wanted = np.concatenate(
            [self._wanted, np.column_stack([holds, np.ones(len(maps), bool)]) & some[:, None]]
        )
        self._maps += list(maps)
        self._descriptors += list(self._describe(images)) if self._describe else []
        for kind in self._wanted.T:
            on_offer = np.flatnonzero(kind)
            kind[on_offer[np.argsort(self._ranks[on_offer], kind="stable")[self._config.most_maps :]]] = False
        kept = np.flatnonzero(self._wanted.any(axis=1))
        self._ranks, self._wanted = self._ranks[kept], self._wanted[kept]
        self._maps = [self._maps[i] for i in kept]
        self._descriptors = [self._descriptors[i] for i in kept] if self._describe else []

    def pool(self, *, turned: bool) -> MapPool:
        """What was kept.

        Raises:
            ConfigError: a quota of a class that too few pixels of every map have.
            DataError: no map has a labelled pixel.
        """
        if not self._maps:
            raise DataError(
                f"none of {self._offered} label maps has a labelled pixel, so no image can be drawn for one"
            )
        kinds = tuple(np.flatnonzero(kind) for kind in self._wanted.T)
        for name, rows, most in zip(self._config.quotas, kinds, self._most_px, strict=False):
            if not len(rows):
                raise ConfigError(
                    f"render.quotas asks for {name}, and none of {self._offered} label maps has "
                    f"{self._config.contains_px} pixels of it (the most is {most}); lower render.contains_px, take the "
                    "maps from elsewhere (render.maps), or leave the class out"
                )
        told = np.stack(self._descriptors) if self._describe else None
        return MapPool(np.stack(self._maps), told, kinds, self._config, self._seed, turned)
