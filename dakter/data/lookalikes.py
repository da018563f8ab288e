"""What darkens the sea without oil: low wind, the lee of land, rain cells (biogenic films are in ``slicks``).

All fields are on the pixel grid: they vary over many pixels, the sharp ones are drawn finer elsewhere.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import shift

from dakter.data.fields import Grid, coarser, finer, fractal, poisson_points, smooth_step

LOW_WIND_REACH_M = 5000.0
RAIN_REACH_M = 4500.0
# Sheltering behind land decays over this distance: some tens of heights of hills of 50-150 m (ours).
LEE_LENGTH_M = 3000.0


def _to_15_degrees(angle: float) -> float:
    """The nearest 15 degrees in radians: spectra of stretched noise are then worked out once and kept."""
    return float(np.round(angle / (np.pi / 12)) * (np.pi / 12))


def wind_field(rng: np.random.Generator, grid: Grid, mean_ms: float, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Speed (m/s) and direction (radians, where it blows to) of a gusty wind, each float32 ``(size, size)``.

    Correlated variation with a -5/3 spectrum along a line (Nastrom & Gage 1985, J. Atmos. Sci. 42, 950-960), in half
    of the scenes with boundary-layer rolls: stripes of 1-3 km along the wind (Alpers & Bruemmer 1994, J. Geophys.
    Res. 99, 12613-12621). Relative deviations (5-12 % in speed) are ours.
    """
    gusts = fractal(rng, grid, outer_m=20_000.0, slope=8 / 3, inner_m=60.0) * rng.uniform(0.05, 0.12)
    if rng.random() < 0.5:
        rolls = fractal(
            rng, grid, outer_m=2200.0, slope=6.0, inner_m=120.0, angle=_to_15_degrees(angle), elongation=6.0
        )
        gusts = gusts + rolls * rng.uniform(0.02, 0.06)
    turn = fractal(rng, grid, outer_m=20_000.0, slope=10 / 3, inner_m=200.0) * np.deg2rad(rng.uniform(2.0, 8.0))
    speed = mean_ms * np.exp(np.clip(gusts, -0.6, 0.6))
    return speed.astype(np.float32), (angle + turn).astype(np.float32)


def low_wind_patches(
    rng: np.random.Generator, grid: Grid, points: list[tuple[float, float]], angle: float
) -> np.ndarray:
    """Factor in (0, 1] on the wind: calm patches, drawn out along the wind ``angle``, with ragged soft borders."""
    coarse_angle = _to_15_degrees(angle)
    factor = np.ones((grid.size, grid.size), dtype=np.float32)
    everywhere = (slice(0, grid.size), slice(0, grid.size))
    for x, y in points:
        length = float(np.clip(rng.lognormal(np.log(2300.0), 0.45), 700.0, LOW_WIND_REACH_M))
        aspect, bearing = rng.uniform(0.3, 0.8), angle + rng.normal(0.0, 0.5)
        u, v = grid.around(x, y, bearing, everywhere)
        # borders are smooth where the calm ends and wispy along the wind
        bays = fractal(rng, grid, outer_m=2.0 * length, slope=rng.uniform(3.3, 4.2), inner_m=60.0)
        wisps = fractal(rng, grid, outer_m=0.5 * length, slope=3.2, inner_m=60.0, angle=coarse_angle, elongation=4.0)
        level = 1.0 - np.hypot(u / length, v / (length * aspect)) + 0.35 * bays + 0.12 * wisps
        depth, soft = rng.uniform(0.45, 0.85), rng.uniform(0.25, 1.2)
        calm = depth * np.clip(0.9 + 0.08 * wisps, 0.7, 1.0)
        factor *= (1.0 - calm * smooth_step(level / soft + 0.3)).astype(np.float32)
    return factor


def draw_low_wind(rng: np.random.Generator, grid: Grid, rate: float) -> list[tuple[float, float]]:
    """Centres of calm patches."""
    return poisson_points(rng, grid, rate, LOW_WIND_REACH_M)


def lee_factor(rng: np.random.Generator, grid: Grid, land: np.ndarray, angle: float) -> np.ndarray:
    """Factor in (0, 1] on the wind: shelter that land (share per pixel, float) gives to the sea downwind of it."""
    factor = 4 if grid.size % 4 == 0 and grid.size >= 64 else 1
    shaded = coarser(land.astype(np.float32), factor)
    cell_m = grid.cell_m * factor
    # uneven hills: some of the coast shelters well, some hardly
    hills = np.clip(0.6 + 0.6 * fractal(rng, Grid(shaded.shape[0], cell_m), outer_m=4000.0, slope=3.0), 0.0, 1.0)
    source = shaded * hills.astype(np.float32)
    shelter = source.copy()
    step_m = 1.5 * cell_m
    for k in range(1, int(2.5 * LEE_LENGTH_M / step_m) + 1):
        move = k * step_m / cell_m
        moved = shift(source, (move * np.sin(angle), move * np.cos(angle)), order=1, mode="nearest", prefilter=False)
        np.maximum(shelter, moved * np.exp(-k * step_m / LEE_LENGTH_M), out=shelter)
    depth = rng.uniform(0.4, 0.8)
    return np.asarray(1.0 - depth * np.clip(finer(shelter, factor) if factor > 1 else shelter, 0.0, 1.0))


def rain_cells(
    rng: np.random.Generator, grid: Grid, rate: float, wind_angle: float
) -> tuple[np.ndarray, np.ndarray, int]:
    """Rain: damping of the core (dB, >= 0), speed added by the gust front (m/s), number of cells.

    At C band turbulence under the rain damps the Bragg waves: a dark core, with a bright gust front where the
    downdraft spreads, strongest downwind (Atlas 1994, J. Geophys. Res. 99, 7889-7904; Alpers, Zhang, Mouche, Zeng &
    Chan 2016, Remote Sens. Environ. 187, 169-185). Sizes and strengths are ours.
    """
    damping_db = np.zeros((grid.size, grid.size), dtype=np.float32)
    gust_ms = np.zeros_like(damping_db)
    points = poisson_points(rng, grid, rate, RAIN_REACH_M)
    everywhere = (slice(0, grid.size), slice(0, grid.size))
    for x, y in points:
        radius = float(np.clip(rng.lognormal(np.log(1500.0), 0.4), 600.0, RAIN_REACH_M / 1.5))
        u, v = grid.around(x, y, wind_angle, everywhere)
        ragged = fractal(rng, grid, outer_m=radius, slope=2.8, inner_m=50.0)
        r = np.hypot(u, v) / radius + 0.16 * ragged
        core = smooth_step((0.75 - r) / 0.35 + 0.5) * (0.8 + 0.25 * ragged)
        damping_db = np.maximum(damping_db, np.maximum(core, 0.0) * rng.uniform(3.0, 7.0)).astype(np.float32)
        ahead = 0.5 + 0.5 * u / np.maximum(np.hypot(u, v), 1.0)
        front = np.exp(-(((r - 1.05) / 0.16) ** 2)) * (0.15 + 0.85 * ahead)
        gust_ms = np.maximum(gust_ms, front * rng.uniform(1.5, 4.5)).astype(np.float32)
    return damping_db, gust_ms, len(points)
