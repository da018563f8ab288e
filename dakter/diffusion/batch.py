"""What a training step sees: which images, turned how, at which noise levels, with which noise.

Row ``r`` of step ``s`` is a pure function of (data, settings, seed, s, r); ranks share out the rows, so a batch is the
same for any number of workers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from dakter import rng
from dakter.diffusion.loss import carries_image, carries_label
from dakter.diffusion.network import describe
from dakter.diffusion.schedule import DiffusionConfig, draw_levels
from dakter.errors import ConfigError, DataError
from dakter.schema import IGNORE, ClassTable, check_images, check_labels, to_model
from dakter.views import Crop, ViewConfig, brighten, draw_crop, enlarge


@dataclass(frozen=True)
class TrainingData:
    """Plain arrays to train on.

    ``images`` stored ``(N, C, H, W)``; ``labels`` uint8 ``(N, H, W)``, IGNORE where not labelled; ``unlabelled``
    stored ``(M, C, H, W)`` or None; ``value_range`` the raw values at stored 0 and full scale; ``b`` the labels' scale.
    ``val_images`` and ``val_labels``, as the first two, are looked at and never learned from.
    """

    images: np.ndarray
    labels: np.ndarray
    unlabelled: np.ndarray | None
    class_table: ClassTable
    value_range: tuple[float, float]
    bands: tuple[str, ...]
    b: float
    val_images: np.ndarray | None = None
    val_labels: np.ndarray | None = None

    @property
    def num_unlabelled(self) -> int:
        return 0 if self.unlabelled is None else len(self.unlabelled)

    def check(self) -> None:
        """Raise DataError unless the arrays fit each other and are square tiles."""
        check_images(self.images, where="training images", bands=len(self.bands))
        check_labels(self.labels, self.images, len(self.class_table), where="training labels")
        if not len(self.images) or self.images.shape[2] != self.images.shape[3]:
            raise DataError(f"training images are {self.images.shape}; expected at least one, and square tiles")
        for name, more in (("unlabelled images", self.unlabelled), ("val images", self.val_images)):
            if more is None or not len(more):
                continue
            check_images(more, where=name, bands=len(self.bands))
            if more.shape[1:] != self.images.shape[1:] or more.dtype != self.images.dtype:
                raise DataError(
                    f"{name} are {more.dtype} {more.shape[1:]}; expected {self.images.dtype} {self.images.shape[1:]} "
                    "as the labelled ones"
                )
        if self.val_images is not None and self.val_labels is not None:
            check_labels(self.val_labels, self.val_images, len(self.class_table), where="val labels")


@dataclass(frozen=True)
class Row:
    """One row of a batch before any array is touched: ``turn`` is one of the 8 symmetries of the square."""

    row: int
    labelled: bool
    index: int
    turn: int
    t_x: float
    t_y: float
    on_image: bool
    on_label: bool
    taught: bool = False


@dataclass(frozen=True)
class Batch:
    """The rows of one rank.

    ``num_image``, ``num_label`` and ``num_taught`` count the rows of the whole batch that carry an image loss, a label
    loss, and a consistency loss to the mean teacher. ``taught`` are the places here of the last, ``plain_TCHW`` their
    images before another view of them was taken, and ``crops`` the parts that those views enlarge (None: the whole).
    """

    x_BCHW: torch.Tensor
    labels_BHW: torch.Tensor
    noise_x_BCHW: torch.Tensor
    noise_y_BKHW: torch.Tensor
    t_x_B: torch.Tensor
    t_y_B: torch.Tensor
    on_image_B: torch.Tensor
    on_label_B: torch.Tensor
    num_image: int
    num_label: int
    num_taught: int
    taught: tuple[int, ...]
    plain_TCHW: torch.Tensor
    crops: tuple[Crop | None, ...]

    def to(self, device: torch.device) -> Batch:
        """The same batch on ``device``."""
        moved: dict[str, Any] = {k: v.to(device) if torch.is_tensor(v) else v for k, v in vars(self).items()}
        return Batch(**moved)


@lru_cache(maxsize=8)
def _order(count: int, seed: int, stream: str, epoch: int) -> np.ndarray:
    return rng.permutation(count, seed, stream, epoch)


def _member(count: int, seed: int, stream: str, position: int) -> int:
    """Which of ``count`` images comes at ``position`` of an endless sequence of permutations."""
    epoch, offset = divmod(position, count)
    return int(_order(count, seed, stream, epoch)[offset])


def plan(
    config: DiffusionConfig,
    data: TrainingData,
    *,
    batch_size: int,
    num_unlabelled: int,
    dihedral: bool,
    seed: int,
    step: int,
    num_taught: int = 0,
) -> list[Row]:
    """Every row of the batch of ``step``: the labelled ones first, then ``num_unlabelled`` unlabelled ones.

    The last ``num_taught`` of these ask for p(y | x) outright, for a mean teacher to answer: no image loss, no label.
    """
    rows, num_labelled = [], batch_size - num_unlabelled
    for row in range(batch_size):
        labelled = row < num_labelled
        if labelled:
            index = _member(len(data.images), seed, "train/labelled", step * num_labelled + row)
        else:
            position = step * num_unlabelled + row - num_labelled
            index = _member(data.num_unlabelled, seed, "train/unlabelled", position)
        draws = rng.numpy_rng(seed, "train/levels", step, row)
        turn = int(draws.integers(8)) if dihedral else 0
        taught = row >= batch_size - num_taught
        t_x, t_y = (config.clean_t, 1.0) if taught else draw_levels(config, draws, labelled=labelled)
        on_image = not taught and carries_image(config, t_x, t_y, labelled)
        on_label = carries_label(config, t_y, labelled)
        rows.append(Row(row, labelled, index, turn, t_x, t_y, on_image, on_label, taught))
    return rows


def turned(array: np.ndarray, turn: int) -> np.ndarray:
    """One of the 8 flips and rotations of the last two axes; ``turn`` 0 leaves all as it is."""
    out = np.rot90(array, turn % 4, axes=(-2, -1))
    return out[..., ::-1] if turn >= 4 else out


def assemble(
    rows: list[Row],
    data: TrainingData,
    *,
    seed: int,
    step: int,
    label_views: ViewConfig | None = None,
    rank: int = 0,
    world: int = 1,
) -> Batch:
    """The arrays of rank ``rank``'s rows (every ``world``-th), image and label turned together.

    Rows without an image loss, those that ask for p(y | x) outright, are seen in the views of ``label_views``.
    """
    own = rows[rank::world]
    size, blank = data.images.shape[1:], np.full(data.images.shape[2:], IGNORE, np.uint8)
    images, labels = [], []
    for row in own:
        source = data.images if row.labelled else data.unlabelled
        assert source is not None
        images.append(turned(source[row.index], row.turn))
        labels.append(turned(data.labels[row.index], row.turn) if row.labelled else blank)
    numbers = [row.row for row in own]
    x_BCHW, labels_BHW = to_model(np.stack(images)), torch.from_numpy(np.stack(labels))
    taught = tuple(place for place, row in enumerate(own) if row.taught)
    plain_TCHW = x_BCHW[list(taught)]
    crops: list[Crop | None] = [None] * len(own)
    if label_views is not None and label_views.changes:
        for place, row in enumerate(own):
            if not row.on_image:
                draws = rng.numpy_rng(seed, "train/views", step, row.row)
                x_BCHW[place], labels_BHW[place], crops[place] = _viewed(
                    x_BCHW[place], labels_BHW[place], label_views, draws
                )
    return Batch(
        x_BCHW=x_BCHW,
        labels_BHW=labels_BHW,
        noise_x_BCHW=rng.normal(size, seed, "train/noise-image", step, numbers),
        noise_y_BKHW=rng.normal((len(data.class_table), *size[1:]), seed, "train/noise-label", step, numbers),
        t_x_B=torch.tensor([row.t_x for row in own], dtype=torch.float32),
        t_y_B=torch.tensor([row.t_y for row in own], dtype=torch.float32),
        on_image_B=torch.tensor([float(row.on_image) for row in own]),
        on_label_B=torch.tensor([float(row.on_label) for row in own]),
        num_image=max(1, sum(row.on_image for row in rows)),
        num_label=max(1, sum(row.on_label for row in rows)),
        num_taught=max(1, sum(row.taught for row in rows)),
        taught=taught,
        plain_TCHW=plain_TCHW,
        crops=tuple(crops[place] for place in taught),
    )


def _viewed(
    image_CHW: torch.Tensor, labels_HW: torch.Tensor, config: ViewConfig, draws: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor, Crop | None]:
    crop = draw_crop(draws, config, *labels_HW.shape)
    if crop:
        image_CHW = enlarge(image_CHW, crop)
        labels_HW = enlarge(labels_HW[None], crop, "nearest-exact")[0]
    return brighten(image_CHW[None], [draws], config)[0], labels_HW, crop


def count_unlabelled(config: DiffusionConfig, data: TrainingData, batch_size: int, share: float) -> int:
    """How many rows of a batch are unlabelled images.

    Raises:
        ConfigError: the paper's joint model knows one noise level only and has no place for unlabelled images, or
            they would fill the whole batch.
    """
    if not data.num_unlabelled or share == 0:
        return 0
    if config.mode == "joint":
        raise ConfigError(
            f"train.unlabelled_share is {share:g} with diffusion.mode joint; expected 0, since an unknown label needs "
            "a noise level of its own: set it to 0 or diffusion.mode to independent"
        )
    count = round(share * batch_size)
    if count >= batch_size:
        raise ConfigError(
            f"train.unlabelled_share is {share:g} of {batch_size} rows; expected at least one labelled row"
        )
    return count


def described(data: TrainingData, count: int, seed: int, *, with_unlabelled: bool) -> torch.Tensor:
    """Descriptors of images that are learned from, each as often as others but for one time: ``(count, D)``.

    Of more than ``count`` images a part, drawn by ``seed``.
    """
    labelled, more = data.images, data.unlabelled if with_unlabelled else None
    total = len(labelled) + (0 if more is None else len(more))
    found = []
    for number in rng.permutation(total, seed, "train/descriptors", 0)[:count]:  # one by one: they may be large
        image = labelled[number] if more is None or number < len(labelled) else more[number - len(labelled)]
        found.append(describe(to_model(image[None])))
    return torch.cat(found)[np.resize(np.arange(len(found)), count)]
