"""What a gate asks of a sample: numbers of its image and its labels, taken alike from real and generated ones.

A measure is named ``<rule>/<what of>``, such as ``damping/oil spill``; images of several bands add the band. Measures
that cannot be told (looks without a homogeneous patch, damping without the class) are NaN.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np

from dakter.evaluate.copies import nearest, thumbnails
from dakter.evaluate.speckle import Texture, power_spectrum, spectrum_distance_db, to_gray
from dakter.metrics import confusion_matrix, miou
from dakter.schema import IGNORE

# To be raised where a measure comes to mean something else: what was measured before is then not used.
VERSION = 1
# Rules on the sample alone; real images of train and of val are asked the same.
TEXTURE = ("mean", "spread", "looks", "spectrum", "damping", "shares")
# Another label of stored images ``(N, C, H, W)`` with numbers ``(N,)``: class maps uint8 ``(N, H, W)``.
Label = Callable[[np.ndarray, np.ndarray], np.ndarray]
AgreementBy = Literal["miou", "pixels"]
_CHUNK = 64  # images in float at a time: 17 MB a band at 256 x 256


@dataclass(frozen=True)
class Measured:
    """Measures of N samples.

    Attributes:
        values: float64 ``(N,)`` of each measure.
        pixels: int64 ``(N, K)``, pixels of each class in the class map.
        nearest: int64 ``(N,)``, the nearest training image.
        small: ``copies.thumbnails``, float32 ``(N, C, S, S)``.
    """

    values: dict[str, np.ndarray]
    pixels: np.ndarray
    nearest: np.ndarray
    small: np.ndarray

    def __len__(self) -> int:
        return len(self.pixels)

    @classmethod
    def joined(cls, parts: Sequence[Measured]) -> Self:
        """Those of all samples, in order; at least one part."""
        return cls(
            {name: np.concatenate([part.values[name] for part in parts]) for name in parts[0].values},
            *(np.concatenate([getattr(part, name) for part in parts]) for name in ("pixels", "nearest", "small")),
        )

    def to_bytes(self) -> bytes:
        """As an npz file."""
        buffer = io.BytesIO()
        values = {f"values/{name}": value for name, value in self.values.items()}
        arrays = {"pixels": self.pixels, "nearest": self.nearest, "small": self.small}
        np.savez_compressed(buffer, allow_pickle=False, **arrays, **values)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """What ``to_bytes`` wrote."""
        with np.load(io.BytesIO(data)) as found:
            values = {name.removeprefix("values/"): found[name] for name in found if name.startswith("values/")}
            return cls(values, found["pixels"], found["nearest"], found["small"])


@dataclass(frozen=True)
class Gauge:
    """What samples are measured by.

    Attributes:
        class_names: of the K classes; class 0 is the background.
        bands: of the images.
        spectra: mean power spectrum of the training images in each band, ``(C, R)``.
        train_small: thumbnails of the training images.
        label: the other label that agreement is with; None: it is not measured.
    """

    class_names: tuple[str, ...]
    bands: tuple[str, ...]
    spectra: np.ndarray
    train_small: np.ndarray
    label: Label | None = None
    agreement_by: AgreementBy = "miou"

    @classmethod
    def of(
        cls,
        train_images: np.ndarray,
        class_names: tuple[str, ...],
        bands: tuple[str, ...],
        label: Label | None = None,
        agreement_by: AgreementBy = "miou",
    ) -> Gauge:
        """A gauge by stored training images ``(N, C, H, W)``."""
        spectra = np.stack([power_spectrum(to_gray(train_images, band)) for band in range(len(bands))])
        return cls(class_names, bands, spectra, thumbnails(train_images), label, agreement_by)

    def measure(self, images: np.ndarray, labels: np.ndarray, numbers: np.ndarray) -> Measured:
        """Every measure of samples that are not training images.

        Args:
            images: stored ``(N, C, H, W)``, N > 0, of the size of the training images.
            labels: class maps uint8 ``(N, H, W)``; of generated images the argmax of their soft labels.
            numbers: ``(N,)`` their numbers, for ``label``.
        """
        chunks = [slice(start, start + _CHUNK) for start in range(0, len(images), _CHUNK)]
        return Measured.joined([self._chunk(images[at], labels[at], numbers[at]) for at in chunks])

    def _chunk(self, images: np.ndarray, labels: np.ndarray, numbers: np.ndarray) -> Measured:
        values, small = self.texture(images, labels), thumbnails(images)
        found = nearest(small, self.train_small)  # small pictures of small pictures are themselves
        values["copies/"] = found.correlation.astype(np.float64)
        if self.label is not None:
            others = self.label(images, numbers)
            values["agreement/"] = agreement(labels, others, len(self.class_names), self.agreement_by)
        return Measured(values, class_pixels(labels, len(self.class_names)), found.index, small)

    def texture(self, images: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
        """The measures of ``TEXTURE`` alone, which training images have too; arguments as for ``measure``."""
        values: dict[str, np.ndarray] = {}
        for number, band in enumerate(self.bands):
            gray, of = to_gray(images, number), band if len(self.bands) > 1 else ""
            found = [Texture.of(gray[i : i + 1], labels[i : i + 1], len(self.class_names)) for i in range(len(gray))]
            distances = np.array([spectrum_distance_db(texture.spectrum, self.spectra[number]) for texture in found])
            values[f"mean/{of}"] = gray.mean(axis=(1, 2), dtype=np.float64)
            values[f"spread/{of}"] = gray.std(axis=(1, 2), dtype=np.float64)
            values[f"looks/{of}"] = np.array([texture.looks for texture in found])
            # Nothing to compare means an image without contrast: as far as can be.
            values[f"spectrum/{of}"] = np.where(np.isnan(distances), np.inf, distances)
            for k, name in enumerate(self.class_names[1:]):
                values[f"damping/{f'{name} {of}'.strip()}"] = np.array([texture.damping_db[k] for texture in found])
        pixels = class_pixels(labels, len(self.class_names)).astype(np.float64)
        total = pixels.sum(axis=1, keepdims=True)
        shares = np.divide(pixels, total, out=np.full_like(pixels, np.nan), where=total > 0)
        return values | {f"shares/{name}": shares[:, k] for k, name in enumerate(self.class_names)}


def rule_of(measure: str) -> str:
    """The rule that a measure belongs to."""
    return measure.partition("/")[0]


def class_pixels(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Pixels of each class in each class map, int64 ``(N, K)``; IGNORE is not counted."""
    return np.stack([np.bincount(label.reshape(-1), minlength=IGNORE + 1)[:num_classes] for label in labels])


def agreement(labels: np.ndarray, others: np.ndarray, num_classes: int, by: AgreementBy) -> np.ndarray:
    """How far two class maps agree where ``labels`` are known, float64 ``(N,)`` in [0, 1]; NaN if nowhere.

    ``pixels`` is the share of agreeing pixels; ``miou`` the mean over the classes of ``labels`` of intersection over
    union, in which a small slick counts as much as the sea around it.
    """
    confusions = np.stack([confusion_matrix(a, b, num_classes) for a, b in zip(labels, others, strict=True)])
    if by == "miou":
        return np.array([miou(confusion) for confusion in confusions])
    total = confusions.sum(axis=(1, 2)).astype(np.float64)
    equal = np.trace(confusions, axis1=1, axis2=2)
    return np.divide(equal, total, out=np.full(len(total), np.nan), where=total > 0)
