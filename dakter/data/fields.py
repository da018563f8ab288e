"""Random fields of the simulator: grids in metres, fractal noise, smooth steps, resampling between grids."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import fft


@dataclass(frozen=True)
class Grid:
    """A square grid of ``size`` x ``size`` cells of ``cell_m`` metres; x (columns) is ground range, y is azimuth."""

    size: int
    cell_m: float

    @property
    def extent_m(self) -> float:
        return self.size * self.cell_m

    def axis_m(self) -> np.ndarray:
        """Cell centres along one axis, float32 ``(size,)``, metres from the upper left corner."""
        return (np.arange(self.size, dtype=np.float32) + 0.5) * np.float32(self.cell_m)

    def window(self, x_m: float, y_m: float, reach_m: float) -> tuple[slice, slice] | None:
        """Rows and columns within ``reach_m`` of a point; None where the grid holds none of them."""
        low = [max(0, int((c - reach_m) / self.cell_m)) for c in (y_m, x_m)]
        high = [min(self.size, int((c + reach_m) / self.cell_m) + 1) for c in (y_m, x_m)]
        if any(b <= a for a, b in zip(low, high, strict=True)):
            return None
        return slice(low[0], high[0]), slice(low[1], high[1])

    def around(self, x_m: float, y_m: float, angle: float, box: tuple[slice, slice]) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates (m) along and across a direction, from a point, over a window: two ``(rows, columns)``."""
        axis = self.axis_m()
        dy, dx = axis[box[0], None] - np.float32(y_m), axis[None, box[1]] - np.float32(x_m)
        cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        return dx * cos + dy * sin, dy * cos - dx * sin


@lru_cache(maxsize=12)
def _amplitudes(n: int, cell_m: float, outer_m: float, slope: float, inner_m: float, angle: float,
                elongation: float) -> np.ndarray:  # fmt: skip
    """Square root of the power spectrum on the half plane of a real FFT, float32 ``(n, n // 2 + 1)``."""
    ky, kx = fft.fftfreq(n, cell_m)[:, None], fft.rfftfreq(n, cell_m)[None]
    along = kx * np.cos(angle) + ky * np.sin(angle)
    across = ky * np.cos(angle) - kx * np.sin(angle)
    k2 = (along * elongation) ** 2 + across**2
    amplitude = (k2 + outer_m**-2.0) ** (-slope / 4.0) * np.exp(-k2 * (inner_m**2))
    amplitude[0, 0] = 0.0
    return amplitude.astype(np.float32)


def fractal(
    rng: np.random.Generator,
    grid: Grid,
    *,
    outer_m: float,
    slope: float,
    inner_m: float = 0.0,
    angle: float = 0.0,
    elongation: float = 1.0,
) -> np.ndarray:
    """Gaussian noise with a power-law spectrum, float32 ``(size, size)``, mean 0 and deviation 1 over the grid.

    Args:
        outer_m: wavelength above which the spectrum is flat.
        slope: power falls as wavenumber^-slope in two dimensions (8/3 is Kolmogorov's 5/3 along a line).
        inner_m: wavelengths well below are smoothed away.
        angle: direction (radians from +x towards +y) along which structures are ``elongation`` times longer.
    """
    # a third more than the grid, then cut: a periodic field would repeat its left edge at its right
    n = int(fft.next_fast_len(grid.size + grid.size // 3, real=True))
    amplitude = _amplitudes(n, grid.cell_m, outer_m, slope, inner_m, angle, elongation)
    parts = rng.standard_normal((*amplitude.shape, 2), dtype=np.float32)
    spectrum = parts.view(np.complex64)[..., 0] * amplitude
    field = fft.irfft2(spectrum, s=(n, n))[: grid.size, : grid.size]
    field = field - field.mean()
    return np.asarray(field / max(float(field.std()), 1e-12), dtype=np.float32)


@lru_cache(maxsize=8)
def _interpolation(size: int, factor: int) -> np.ndarray:
    """Matrix of linear interpolation from ``size`` cell centres to ``size * factor``, ends held."""
    position = (np.arange(size * factor) + 0.5) / factor - 0.5
    left = np.clip(np.floor(position).astype(int), 0, max(size - 2, 0))
    share = np.clip(position - left, 0.0, 1.0)
    matrix = np.zeros((size * factor, size), dtype=np.float32)
    rows = np.arange(size * factor)
    matrix[rows, left] = 1.0 - share
    matrix[rows, np.minimum(left + 1, size - 1)] += share
    return matrix


def finer(field: np.ndarray, factor: int) -> np.ndarray:
    """Bilinear interpolation of a square float32 field to a grid ``factor`` times finer."""
    matrix = _interpolation(field.shape[0], factor)
    return np.asarray(matrix @ np.asarray(field, dtype=np.float32) @ matrix.T)


def coarser(field: np.ndarray, factor: int) -> np.ndarray:
    """Mean over blocks of ``factor`` x ``factor`` cells, float32."""
    total = np.zeros((field.shape[0] // factor, field.shape[1] // factor), dtype=np.float32)
    for i in range(factor):
        for j in range(factor):
            total += field[i::factor, j::factor]
    return total / np.float32(factor * factor)


def smooth_step(value: np.ndarray) -> np.ndarray:
    """0 below 0, 1 above 1, with level ends between (3t^2 - 2t^3)."""
    t = np.clip(value, 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def poisson_points(
    rng: np.random.Generator, grid: Grid, rate_per_100km2: float, reach_m: float
) -> list[tuple[float, float]]:
    """Centres (x, y in m) of objects of a homogeneous Poisson process that may touch the grid.

    The process is drawn on the grid plus ``reach_m`` on every side, so that the expected share of the grid under
    objects depends on neither its extent nor its pixel.
    """
    side = grid.extent_m + 2.0 * reach_m
    count = int(rng.poisson(rate_per_100km2 * side * side / 1e8))
    points = rng.uniform(-reach_m, grid.extent_m + reach_m, size=(count, 2))
    return [(float(x), float(y)) for x, y in points]
