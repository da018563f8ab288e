"""Axis letters, class tables, value ranges, and the checks made once at a boundary.

Axis letters in names: ``N`` samples of a set, ``B`` samples of a batch, ``C`` image bands, ``K`` classes,
``H`` rows, ``W`` columns. Three scales occur and no other:

* *stored*: unsigned integers, uint8 or uint16; the full integer range spans the stated raw ``value_range``, so
  raw = low + (high - low) * stored / largest integer;
* *model*: float32 in [-1, 1];
* *soft label*: float32 in [0, 1], summing to 1 over ``K`` (uint8 summing to 255 where stored).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from dakter.errors import DataError


@dataclass(frozen=True)
class ClassTable:
    """The classes of a label map: pixel value ``k`` means ``names[k]``, drawn in ``colours[k]`` (sRGB hex)."""

    name: str
    names: tuple[str, ...]
    colours: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.names) != len(self.colours) or len(self.names) < 2:
            raise DataError(
                f"class table {self.name!r}: {len(self.names)} names and {len(self.colours)} colours; expected as "
                "many colours as names, and at least two classes"
            )

    def __len__(self) -> int:
        return len(self.names)

    def index(self, name: str) -> int:
        """The pixel value of a class name; raises DataError for an unknown one."""
        if name not in self.names:
            raise DataError(f"unknown class {name!r}; expected one of {', '.join(self.names)}")
        return self.names.index(name)

    def to_json(self) -> dict[str, object]:
        return {"name": self.name, "names": list(self.names), "colours": list(self.colours)}

    @classmethod
    def from_json(cls, data: dict[str, object]) -> ClassTable:
        names, colours = data["names"], data["colours"]
        if not isinstance(names, list) or not isinstance(colours, list):
            raise DataError(f"class table: names {names!r} and colours {colours!r}; expected two lists")
        return cls(str(data["name"]), tuple(map(str, names)), tuple(map(str, colours)))


# Classes and colours of the Oil Spill Detection dataset (Krestenitis et al. 2019, Remote Sensing 11(15) 1762).
OSD = ClassTable(
    "osd",
    ("sea surface", "oil spill", "look-alike", "ship", "land"),
    ("#000000", "#00ffff", "#ff0000", "#994c00", "#009900"),
)
# Deep-SAR Oil Spill dataset (Zhu et al. 2022, IEEE TGRS 60): masks are 0 sea and 255 oil.
SOS = ClassTable("sos", ("sea surface", "oil spill"), ("#000000", "#00ffff"))

# Pixel value for "not labelled": never counted, never learned from.
IGNORE = 255


def check_images(images: np.ndarray, *, where: str, bands: int | None = None) -> None:
    """Refuse anything but stored images ``(N, C, H, W)`` uint8 or uint16. ``where`` names the source in the error."""
    if images.ndim != 4 or images.dtype not in (np.uint8, np.uint16):
        raise DataError(f"{where}: images are {images.dtype} {images.shape}; expected uint8 or uint16 (N, C, H, W)")
    if bands is not None and images.shape[1] != bands:
        raise DataError(f"{where}: images have {images.shape[1]} bands; expected {bands}")


def check_labels(labels: np.ndarray, images: np.ndarray, num_classes: int, *, where: str) -> None:
    """Refuse anything but class maps ``(N, H, W)`` uint8 that fit ``images`` and hold known classes or IGNORE."""
    expected = (images.shape[0], *images.shape[2:])
    if labels.dtype != np.uint8 or labels.shape != expected:
        raise DataError(f"{where}: labels are {labels.dtype} {labels.shape}; expected uint8 {expected}")
    unknown = sorted(set(np.unique(labels).tolist()) - set(range(num_classes)) - {IGNORE})
    if unknown:
        raise DataError(f"{where}: unknown label values {unknown}; expected 0..{num_classes - 1} or {IGNORE} (ignore)")


def check_soft_labels(soft_BKHW: np.ndarray | torch.Tensor, num_classes: int, *, where: str) -> None:
    """Refuse anything but float probabilities ``(B, K, H, W)`` in [0, 1] that sum to 1 over K within 1e-2."""
    soft = torch.as_tensor(soft_BKHW)
    if soft.ndim != 4 or soft.shape[1] != num_classes or not soft.is_floating_point():
        raise DataError(
            f"{where}: soft labels are {soft.dtype} {tuple(soft.shape)}; expected float (B, {num_classes}, H, W)"
        )
    if not bool(torch.isfinite(soft).all()):
        raise DataError(f"{where}: soft labels hold NaN or infinity")
    if float(soft.min()) < -1e-6 or float((soft.sum(1) - 1).abs().max()) > 1e-2:
        raise DataError(
            f"{where}: soft labels are no probabilities: minimum {float(soft.min()):.3g}, sums off 1 by up to "
            f"{float((soft.sum(1) - 1).abs().max()):.3g}"
        )


def to_model(stored: np.ndarray) -> torch.Tensor:
    """Stored uint8 or uint16 to model scale: float32 in [-1, 1], same shape."""
    top = float(np.iinfo(stored.dtype).max)
    return torch.from_numpy(stored.astype(np.float32)) * (2.0 / top) - 1.0


def to_stored(model: torch.Tensor | np.ndarray, dtype: type[np.unsignedinteger] = np.uint8) -> np.ndarray:
    """Model scale to stored integers; values outside [-1, 1] are clipped, ties round to even."""
    top = float(np.iinfo(dtype).max)
    values = np.asarray(model, dtype=np.float32)
    return np.rint(np.clip((values + 1.0) * (top / 2.0), 0.0, top)).astype(dtype)


def soft_to_stored(soft: torch.Tensor | np.ndarray) -> np.ndarray:
    """Soft labels ``(B, K, H, W)`` to uint8 that sums to 255 a pixel.

    Each probability is rounded; the residual goes to the most likely class, so that the sum is exact and the argmax
    stays but for near-ties; total variation is at most (K-1)/510 a pixel.

    Chosen by ``jobs/benchmark.py --suite encoding``, against uint8 of sqrt(p), uint16 and float16. At 0.05 and 0.25
    nats a pixel: mean total variation 3e-4 and 2e-3; 36 and 113 KB a 256x256x5 sample (sqrt 52 and 175, uint16 100 and
    416, float16 133 and 544). Students of three seeds, val mIoU against float32's: -0.004 and +0.001, within what
    uint16 (-0.005, -0.004) and p changed by 1e-6 (+0.002, -0.003) give: no effect seen (results/encoding-full.json).
    """
    p = np.asarray(soft, dtype=np.float32)
    q = np.rint(p * 255.0).astype(np.int16)
    residual = 255 - q.sum(axis=1, keepdims=True)
    np.put_along_axis(q, (top := p.argmax(axis=1)[:, None]), np.take_along_axis(q, top, 1) + residual, 1)
    return q.astype(np.uint8)


def soft_from_stored(stored: np.ndarray) -> torch.Tensor:
    """Stored uint8 soft labels to float32 probabilities, same shape."""
    return torch.from_numpy(stored.astype(np.float32)) / 255.0
