"""Speckle of a multi-look intensity image, and the 8-bit stretch that follows it."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import correlate1d
from scipy.special import gammaincinv, ndtr

# A separable three-tap kernel [a, 1, a] reaches every correlation of neighbours up to 1 / sqrt(2).
MAX_CORRELATION = 0.7


def speckle(rng: np.random.Generator, shape: tuple[int, int], looks: float, correlation: float) -> np.ndarray:
    """Multiplicative speckle of an intensity image, float32 ``shape``, mean 1, variance 1 / looks.

    Each pixel is exactly gamma distributed with shape ``looks`` (Goodman's fully developed speckle after multi-look;
    Oliver & Quegan 2004, Understanding SAR Images, section 4.3). Neighbours are tied through a Gaussian copula: the
    underlying normal field has correlation ``correlation`` at one pixel along rows and columns and c^2 of it across.

    Args:
        looks: equivalent number of looks, > 0, need not be whole.
        correlation: of direct neighbours, 0 to 0.7.
    """
    normal = rng.standard_normal(shape, dtype=np.float32)
    if correlation > 0:
        a = (1.0 - np.sqrt(1.0 - 2.0 * correlation**2)) / (2.0 * correlation)
        taps = np.array([a, 1.0, a]) / np.sqrt(1.0 + 2.0 * a * a)
        normal = correlate1d(correlate1d(normal, taps, axis=0, mode="wrap"), taps, axis=1, mode="wrap")
    # the quantile function as a table: 2,000 points of a smooth monotone curve against one gammaincinv a pixel
    knots = np.linspace(-6.0, 6.0, 2001)
    values = gammaincinv(looks, ndtr(knots)) / looks
    return np.interp(normal, knots, values).astype(np.float32)


def stretch_to_8bit(
    intensity_db: np.ndarray, percentiles: tuple[float, float], min_span_db: float
) -> tuple[np.ndarray, float, float]:
    """The per-image contrast stretch: linear in dB between two percentiles of the image, then clipped to uint8.

    The OSD images went from dB to luminosity by a linear map of each image (Krestenitis et al. 2019, Remote Sensing
    11, 1762, section 3); the percentiles and the least span, which keeps an empty sea from filling the range with
    speckle, are ours.

    Returns:
        image uint8 of the same shape, and the dB values of grey levels 0 and 255.
    """
    low, high = (float(v) for v in np.percentile(intensity_db, percentiles))
    lack = max(0.0, min_span_db - (high - low))
    low, high = low - lack / 2, high + lack / 2
    grey = np.rint((intensity_db - low) * (255.0 / (high - low)))
    return np.clip(grey, 0, 255).astype(np.uint8), low, high
