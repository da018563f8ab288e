"""Image statistics that tell real SAR texture from imitation, where features of photographs (FID) are blind.

Images come as gray values ``(N, H, W)``, float in [0, 1]: stored integers over their maximum, one band. Where the
images are 8-bit pictures stretched one by one (OSD, SOS, the simulator), gray is neither calibrated intensity nor dB,
so looks and decibels are *apparent*: they take gray for intensity, and compare only sets stretched the same way.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import binary_dilation

from dakter.errors import DataError

NUM_BINS = 64


def to_gray(stored: np.ndarray, band: int = 0) -> np.ndarray:
    """One band of stored images ``(N, C, H, W)``, uint8 or uint16, as float32 ``(N, H, W)`` in [0, 1]."""
    return stored[:, band].astype(np.float32) / np.iinfo(stored.dtype).max


def equivalent_looks(gray: np.ndarray, labels: np.ndarray, of_class: int = 0, patch_px: int = 8) -> np.ndarray:
    """Equivalent number of looks of homogeneous patches: mean^2 / variance (Oliver & Quegan 2004, section 4.3).

    Args:
        gray: ``(N, H, W)``; for gamma speckle of L looks on constant intensity the result is about L.
        labels: ``(N, H, W)``; a patch counts as homogeneous if all its pixels are of ``of_class``.
        patch_px: side of the patches, which tile the image without overlap. A gradient inside a patch lowers it.

    Returns:
        float64 ``(P,)``, one a patch; patches without any variance (saturated) are left out.
    """
    patches = _patches(gray, patch_px).astype(np.float64)
    homogeneous = (_patches(labels, patch_px) == of_class).all(axis=1)
    mean, variance = patches.mean(axis=1), patches.var(axis=1, ddof=1)
    chosen = homogeneous & (variance > 0)
    return mean[chosen] ** 2 / variance[chosen]


def histogram(gray: np.ndarray) -> np.ndarray:
    """Shares of ``NUM_BINS`` equal bins of gray in [0, 1], float64, summing to 1."""
    _some(gray)
    counts = np.histogram(gray, bins=NUM_BINS, range=(0.0, 1.0))[0]
    return counts / counts.sum()


def histogram_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Earth mover's distance of two histograms, in gray from 0 to 1: how far gray must be moved on average."""
    return float(np.abs(np.cumsum(a) - np.cumsum(b)).sum() / len(a))


def power_spectrum(gray: np.ndarray) -> np.ndarray:
    """Mean radial power spectrum, float64 ``(R,)``: shares of the power at 0 < f <= 0.5 cycles a pixel.

    The mean of ``ring_power`` over images, divided by its sum: it speaks of texture, not of contrast.
    """
    _some(gray)
    mean = ring_power(gray).mean(axis=0)
    total = mean.sum()
    return mean / total if total else mean


def ring_power(gray: np.ndarray) -> np.ndarray:
    """Power of each image of ``(N, H, W)``, averaged over directions, float64 ``(N, R)``.

    Each image loses its mean and is tapered by a Hann window; R = min(H, W) / 2 rings of equal width.
    """
    height, width = gray.shape[1:]
    window = np.outer(np.hanning(height + 2)[1:-1], np.hanning(width + 2)[1:-1])
    rings = min(height, width) // 2
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    ring = np.ceil(radius * 2 * rings).astype(np.int64)  # 0 is the mean; beyond ``rings`` are the corners
    inside = (ring >= 1) & (ring <= rings)
    counts = np.bincount(ring[inside], minlength=rings + 1)[1:]
    found = np.zeros((len(gray), rings))
    for row, image in zip(found, gray, strict=True):
        power = np.abs(np.fft.fft2((image - image.mean(dtype=np.float64)) * window)) ** 2
        row[:] = np.bincount(ring[inside], weights=power[inside], minlength=rings + 1)[1:] / counts
    return found


def spectrum_distance_db(a: np.ndarray, b: np.ndarray) -> float:
    """Root mean square over rings of the ratio of two power spectra in dB.

    NaN where there is nothing to compare: images without contrast, or of two sizes.
    """
    if a.shape != b.shape or not (a.min() > 0 and b.min() > 0):
        return float("nan")
    return float(np.sqrt(np.mean((10 * np.log10(a / b)) ** 2)))


def damping_db(
    gray: np.ndarray, labels: np.ndarray, inside_class: int, outside_class: int = 0, reach_px: int = 8
) -> np.ndarray:
    """How much darker a class is than what surrounds it, in (apparent) dB, one number an image that holds both.

    ``10 log10(mean outside / mean inside)``: inside are all pixels of ``inside_class``, outside those of
    ``outside_class`` within ``reach_px`` of them. Positive where the class is darker.

    Returns:
        float64 ``(M,)``; images without at least 16 pixels of either, or black in either, are left out.
    """
    found = []
    for image, label in zip(gray, labels, strict=True):
        inside = label == inside_class
        if inside.sum() < 16:
            continue
        outside = binary_dilation(inside, iterations=reach_px) & (label == outside_class)
        if outside.sum() < 16:
            continue
        dark, bright = (float(image[mask].mean(dtype=np.float64)) for mask in (inside, outside))
        if dark > 0 and bright > 0:
            found.append(10 * np.log10(bright / dark))
    return np.array(found, dtype=np.float64)


def decibels(value: float | None) -> str:
    """``"1.8 dB"``; ``"an unknown amount"`` for None."""
    return "an unknown amount" if value is None else f"{value:.1f} dB"


def class_shares(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Share of each class among labelled pixels, float64 ``(K,)``; values from K up (IGNORE) are not counted."""
    counts = np.bincount(labels.reshape(-1), minlength=num_classes)[:num_classes].astype(np.float64)
    return counts / max(counts.sum(), 1.0)


@dataclass(frozen=True)
class Texture:
    """The statistics of one set of images with class maps.

    Attributes:
        looks: median equivalent number of looks over homogeneous patches of class 0; NaN if there is none.
        histogram, spectrum: as returned by the functions of those names.
        damping_db: median damping of each class but 0 against class 0, ``(K - 1,)``; NaN where no image has it.
        shares: of the classes, ``(K,)``.
    """

    looks: float
    histogram: np.ndarray
    spectrum: np.ndarray
    damping_db: np.ndarray
    shares: np.ndarray

    @classmethod
    def of(cls, gray: np.ndarray, labels: np.ndarray, num_classes: int) -> Texture:
        """From gray values ``(N, H, W)`` and class maps ``(N, H, W)``."""
        return cls(
            _median(equivalent_looks(gray, labels)),
            histogram(gray),
            power_spectrum(gray),
            np.array([_median(damping_db(gray, labels, k)) for k in range(1, num_classes)]),
            class_shares(labels, num_classes),
        )


def _median(values: np.ndarray) -> float:
    return float(np.median(values)) if values.size else float("nan")


def _some(gray: np.ndarray) -> None:
    if gray.ndim != 3 or not gray.size:
        raise DataError(f"image statistics: gray values {gray.shape}; expected (N, H, W) with at least one image")


def _patches(values: np.ndarray, patch_px: int) -> np.ndarray:
    """Non-overlapping patches ``(P, patch_px^2)`` of ``(N, H, W)``; a remainder at the edges is dropped."""
    num, rows, columns = len(values), values.shape[1] // patch_px, values.shape[2] // patch_px
    cut = values[:, : rows * patch_px, : columns * patch_px]
    split = cut.reshape(num, rows, patch_px, columns, patch_px).swapaxes(2, 3)
    return split.reshape(-1, patch_px * patch_px)
