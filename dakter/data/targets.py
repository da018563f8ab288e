"""Hard targets: ships with the sidelobes of the radar's impulse response, and textured land with its coast."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dakter.data.fields import Grid, finer, fractal

# Ground resolution of Sentinel-1 IW GRDH (range x azimuth about 20 m x 22 m) and its peak sidelobe ratio
# (Sentinel-1 product definition, S1-RS-MDA-52-7440: PSLR no worse than -20 dB).
RESOLUTION_M = 21.0
SIDELOBE_DB = -20.0
# How far a labeller's outline of a ship exceeds the hull: half a resolution cell and the bloom of its echo (ours).
LABEL_MARGIN_M = 28.0


@dataclass(frozen=True)
class Ship:
    """A ship at (x, y) m, heading in radians from +x towards +y, hull in m, radar cross section in m^2."""

    x_m: float
    y_m: float
    heading: float
    length_m: float
    beam_m: float
    rcs_m2: float


def draw_ship(rng: np.random.Generator, x_m: float, y_m: float, heading: float, incidence_deg: float) -> Ship:
    """A merchant ship. Cross section 0.08 L^(7/3) (0.78 + 0.11 incidence) m^2 (Vachon, Campbell, Bjerkelund, Dobson
    & Rey 1997, Can. J. Remote Sens. 23, 48-59) with a scatter of 3 dB (ours)."""
    length = float(np.clip(rng.lognormal(np.log(150.0), 0.45), 40.0, 370.0))
    rcs = 0.08 * length ** (7 / 3) * (0.78 + 0.11 * incidence_deg) * 10 ** (0.1 * rng.normal(0.0, 3.0))
    return Ship(x_m, y_m, heading, length, length / rng.uniform(5.5, 7.5), float(rcs))


def _line_response(offset_m: np.ndarray) -> np.ndarray:
    """Power of the impulse response along one axis, peak 1: a Gaussian main lobe and falling sidelobes."""
    t = offset_m / RESOLUTION_M
    main = np.exp(-4 * np.log(2.0) * t * t)  # -3 dB at half a resolution cell
    lobes = 10 ** (SIDELOBE_DB / 10) * np.sin(np.pi * t) ** 2 * (1.5 / np.maximum(np.abs(t), 1.5)) ** 2
    return np.asarray(np.maximum(main, np.where(np.abs(t) > 1, lobes, 0.0)))


def ship_response(rng: np.random.Generator, grid: Grid, ship: Ship) -> np.ndarray:
    """sigma0 (linear) that a ship adds, float32 ``(size, size)``: a few scatterers along its hull, each a cross."""
    scatterers = int(rng.integers(3, 7))
    along = rng.uniform(-0.45, 0.45, scatterers) * ship.length_m
    shares = rng.dirichlet(np.full(scatterers, 0.8))
    # integrate the response over each cell by samples a few metres apart
    num = max(3, int(np.ceil(grid.cell_m / 5.0)))
    samples = ((np.arange(num) + 0.5) / num - 0.5) * grid.cell_m
    offsets = grid.axis_m()[:, None] + samples
    fine = np.linspace(-2000.0, 2000.0, 4001)
    total = float(_line_response(fine).sum() * (fine[1] - fine[0]))  # integral in m: energy is kept

    def profile(centre_m: float) -> np.ndarray:
        return np.asarray(_line_response(offsets - centre_m).mean(axis=1) / total)

    rows = np.stack([profile(ship.y_m + a * np.sin(ship.heading)) for a in along])
    columns = np.stack([profile(ship.x_m + a * np.cos(ship.heading)) for a in along])
    return np.asarray((rows.T * (shares * ship.rcs_m2)) @ columns, dtype=np.float32)


def ship_mask(grid: Grid, ship: Ship) -> tuple[tuple[slice, slice], np.ndarray] | None:
    """Window and mask of the outlined ship: its hull and a margin of ``LABEL_MARGIN_M``; None outside the grid."""
    half, beam = ship.length_m / 2 + LABEL_MARGIN_M, ship.beam_m / 2 + LABEL_MARGIN_M
    box = grid.window(ship.x_m, ship.y_m, half)
    if box is None:
        return None
    u, v = grid.around(ship.x_m, ship.y_m, ship.heading, box)
    return box, (u / half) ** 4 + (v / beam) ** 4 <= 1.0


def draw_land(rng: np.random.Generator, grid: Grid, factor: int, share: float) -> np.ndarray:
    """Land mask on the grid ``factor`` times finer that covers ``share`` of it: a coast with bays and islands."""
    angle = rng.uniform(0, 2 * np.pi)
    u, _ = grid.around(0.0, 0.0, angle, (slice(0, grid.size), slice(0, grid.size)))
    coast = fractal(rng, grid, outer_m=8000.0, slope=rng.uniform(3.3, 3.9), inner_m=60.0) * rng.uniform(400.0, 1800.0)
    level = finer(u + coast, factor)
    return np.asarray(level < np.quantile(level, share))


def land_sigma0(rng: np.random.Generator, grid: Grid) -> np.ndarray:
    """sigma0 (linear) of land on the pixel grid: relief facing towards or away from the radar, cover, bright targets.

    Mean -12 to -7 dB (C-band VV of vegetated land at 30-45 degrees: Ulaby & Dobson 1989, Handbook of Radar Scattering
    Statistics for Terrain); the amplitudes of relief (to 4 dB) and cover (0.8-2 dB) are ours.
    """
    relief = fractal(rng, grid, outer_m=rng.uniform(2000.0, 8000.0), slope=rng.uniform(3.6, 4.4), inner_m=90.0)
    facing = np.gradient(relief, axis=1)
    facing = np.clip(facing / max(float(facing.std()), 1e-9), -2.5, 3.5) * rng.uniform(0.5, 4.0)
    # hills beside plains
    facing = facing * np.clip(0.7 + 0.6 * fractal(rng, grid, outer_m=9000.0, slope=4.0), 0.05, 1.6)
    cover = fractal(rng, grid, outer_m=1500.0, slope=2.6) * rng.uniform(0.8, 2.0)
    towns = fractal(rng, grid, outer_m=2500.0, slope=3.0)
    bright = np.where((towns > 1.7) & (rng.random(towns.shape) < 0.25), rng.uniform(4.0, 12.0, towns.shape), 0.0)
    return np.asarray(10 ** (0.1 * (rng.uniform(-12.0, -7.0) + facing + cover + bright)), dtype=np.float32)
