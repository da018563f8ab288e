"""Outlines of films on the sea: mineral oil (ship trails, patches, seeps) and biogenic filaments.

A film is a *cover* field on a fine grid: 0 clean, 1 closed film, between them a feathered edge. Where cover exceeds
one half the film is there for the class map. Shapes are ours; what they copy is named at each (Brekke & Solberg 2005,
Remote Sens. Environ. 95, 1-13, figures; Espedal & Johannessen 2000, Int. J. Remote Sens. 21, 2141-2144).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dakter.data.fields import Grid, fractal, poisson_points, smooth_step

# Half the greatest length of each kind (m): how far outside a scene a centre can lie and still touch it.
TRAIL_REACH_M = 9000.0
PATCH_REACH_M = 3500.0
SEEP_REACH_M = 4500.0
FILAMENT_REACH_M = 5500.0


@dataclass(frozen=True)
class Noises:
    """Unit noise on the fine grid, shared by the films of a scene: ``edge`` isotropic, ``streak`` along the wind."""

    edge: np.ndarray
    streak: np.ndarray

    @classmethod
    def draw(cls, rng: np.random.Generator, grid: Grid, wind_angle: float) -> Noises:
        edge = fractal(rng, grid, outer_m=1800.0, slope=2.9, inner_m=15.0)
        # to the nearest 15 degrees, so that spectra are worked out once
        angle = float(np.round(wind_angle / (np.pi / 12)) * (np.pi / 12))
        return cls(edge, fractal(rng, grid, outer_m=500.0, slope=2.4, inner_m=15.0, angle=angle, elongation=5.0))


@dataclass(frozen=True)
class OilSlick:
    """One slick along a bent centre line, widening from its head (``+length / 2``) to its tail.

    ``angle`` is the direction of the head (radians from +x towards +y); ``downwind`` is +1 where the wind blows
    towards positive across, else -1; lengths and widths in m; ``strength`` is the share of the damping of a fresh,
    closed slick; ``tear`` is the amplitude of the torn outline in half-widths.
    """

    kind: str
    x_m: float
    y_m: float
    angle: float
    length_m: float
    head_m: float
    tail_m: float
    bend_m: float
    drift_m: float
    meander_m: float
    meander_phase: float
    meander_waves: float
    downwind: float
    tear: float
    gaps: float
    strength: float

    def head_point(self) -> tuple[float, float]:
        """Where the head lies (x, y in m): the ship of a fresh trail."""
        across = _centre_line(self, np.array(0.5))
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        along = self.length_m / 2
        return float(self.x_m + along * cos - across * sin), float(self.y_m + along * sin + across * cos)


def _centre_line(slick: OilSlick, s: np.ndarray) -> np.ndarray:
    """Offset across (m) at ``s`` in -0.5 (tail) to 0.5 (head): bend, meanders, and drift growing with age."""
    age = 0.5 - s
    meander = np.sin(2 * np.pi * slick.meander_waves * s + slick.meander_phase)
    meander = meander + 0.45 * np.sin(2 * np.pi * 2.3 * slick.meander_waves * s + 2.1 * slick.meander_phase)
    offset = slick.bend_m * (4 * s * s) + slick.drift_m * slick.downwind * age**1.3
    return np.asarray(offset + slick.meander_m * meander * np.minimum(1.0, 0.25 + age))


def oil_cover(grid: Grid, noises: Noises, slick: OilSlick) -> tuple[tuple[slice, slice], np.ndarray] | None:
    """Window of the grid and cover in [0, 1] within it; None where the slick misses the grid.

    The windward edge is sharp; downwind the film feathers out into streaks, the more the older it is.
    """
    reach = 0.5 * slick.length_m + abs(slick.bend_m) + slick.drift_m + 2 * slick.meander_m + 2 * slick.tail_m
    box = grid.window(slick.x_m, slick.y_m, reach)
    if box is None:
        return None
    u, v = grid.around(slick.x_m, slick.y_m, slick.angle, box)
    edge, streak = noises.edge[box], noises.streak[box]
    # the torn outline: the plane itself is bent by the noise before the shape is drawn on it
    v = v + np.float32(0.5 * slick.tear * slick.tail_m) * edge
    u = u + np.float32(0.5 * slick.tear * slick.tail_m) * streak
    s = u / np.float32(slick.length_m)
    inside = np.clip(s, -0.5, 0.5)
    age = 0.5 - inside
    if slick.kind == "patch":
        width = slick.tail_m * np.sqrt(np.maximum(1.0 - 4 * inside**2, 0.0)) * (0.65 + 0.5 * age)
    else:
        width = slick.head_m + (slick.tail_m - slick.head_m) * age**0.7
        width = width * smooth_step((0.5 - np.abs(s)) * (slick.length_m / (6 * slick.tail_m)))
    width = np.maximum(width, 1e-3).astype(np.float32)
    q = (v - _centre_line(slick, inside).astype(np.float32)) * np.float32(slick.downwind) / width
    ragged = slick.tear * (0.35 + 0.65 * age)
    leeward = np.clip(q, 0.0, 1.0)
    level = 1.0 - np.abs(q) + ragged * (0.45 * edge + (0.25 + 0.7 * leeward) * streak) - slick.gaps * 0.35
    # an edge is at least one cell wide; downwind it fades over up to the whole half-width
    soft = np.maximum(grid.cell_m / width, 0.15 + 0.75 * leeward)
    cover = smooth_step(level / soft + 0.5)
    if slick.gaps > 0:
        cover = cover * smooth_step(1.6 - slick.gaps + 0.9 * np.sin(9.0 * s + slick.meander_phase) + 0.5 * edge)
    cover[np.abs(s) > 0.5] = 0.0
    return box, cover


def draw_trails(rng: np.random.Generator, grid: Grid, rate: float, wind_angle: float, wind_ms: float) -> list[OilSlick]:
    """Trails of moving ships: long, narrow, widening and drifting downwind with age (3 % of the wind: Fay drift)."""
    slicks = []
    for x, y in poisson_points(rng, grid, rate, TRAIL_REACH_M):
        angle, speed = rng.uniform(0, 2 * np.pi), rng.uniform(5.0, 9.0)
        length = float(np.clip(rng.lognormal(np.log(6000.0), 0.5), 1500.0, 2 * TRAIL_REACH_M))
        downwind_across = np.sin(wind_angle - angle)
        # the tail was left length / speed ago; surface currents carry it up to three times as far as the wind alone
        drift = 0.03 * wind_ms * (length / speed) * abs(downwind_across) * rng.uniform(0.8, 3.0)
        tail = rng.lognormal(np.log(190.0), 0.4)
        slicks.append(
            OilSlick(
                kind="trail", x_m=x, y_m=y, angle=angle, length_m=length, head_m=rng.uniform(25.0, 60.0), tail_m=tail,
                bend_m=rng.normal(0.0, 0.05) * length,
                drift_m=min(drift, 0.3 * length),
                meander_m=rng.uniform(0.15, 0.8) * tail, meander_phase=rng.uniform(0, 2 * np.pi),
                meander_waves=length / rng.uniform(1800.0, 5000.0), downwind=1.0 if downwind_across >= 0 else -1.0,
                tear=rng.uniform(0.25, 0.8), gaps=rng.uniform(0.2, 1.0) if rng.random() < 0.5 else 0.0,
                strength=rng.uniform(0.55, 1.0),
            )
        )  # fmt: skip
    return slicks


def draw_patches(
    rng: np.random.Generator, grid: Grid, rate: float, wind_angle: float, seep_rate: float
) -> list[OilSlick]:
    """Patches (accidents, platforms: broad, drawn out downwind, torn) and seeps (thin, meandering with the current)."""
    slicks = []
    for x, y in poisson_points(rng, grid, rate, PATCH_REACH_M):
        angle = wind_angle + np.pi + rng.normal(0.0, 0.35)  # the tail lies downwind of the source
        length = float(np.clip(rng.lognormal(np.log(3200.0), 0.45), 900.0, 2 * PATCH_REACH_M))
        tail = length * rng.uniform(0.05, 0.15)
        slicks.append(
            OilSlick(
                kind="patch", x_m=x, y_m=y, angle=angle, length_m=length, head_m=0.3 * tail, tail_m=tail,
                bend_m=rng.normal(0.0, 0.15) * length, drift_m=0.0, meander_m=rng.uniform(0.1, 0.4) * tail,
                meander_phase=rng.uniform(0, 2 * np.pi), meander_waves=rng.uniform(0.7, 2.0),
                downwind=float(rng.choice([-1.0, 1.0])), tear=rng.uniform(0.5, 1.0), gaps=0.0,
                strength=rng.uniform(0.6, 1.0),
            )
        )  # fmt: skip
    for x, y in poisson_points(rng, grid, seep_rate, SEEP_REACH_M):
        length = float(np.clip(rng.lognormal(np.log(4500.0), 0.4), 1200.0, 2 * SEEP_REACH_M))
        slicks.append(
            OilSlick(
                kind="seep", x_m=x, y_m=y, angle=wind_angle + np.pi + rng.normal(0.0, 0.6), length_m=length,
                head_m=rng.uniform(25.0, 50.0), tail_m=rng.uniform(70.0, 160.0), bend_m=rng.normal(0.0, 0.15) * length,
                drift_m=0.0, meander_m=length * rng.uniform(0.03, 0.09), meander_phase=rng.uniform(0, 2 * np.pi),
                meander_waves=rng.uniform(1.0, 2.5), downwind=float(rng.choice([-1.0, 1.0])),
                tear=rng.uniform(0.4, 1.0), gaps=rng.uniform(0.0, 0.6), strength=rng.uniform(0.5, 0.9),
            )
        )  # fmt: skip
    return slicks


def filament_cover(
    rng: np.random.Generator, fine: Grid, stream: np.ndarray, edge: np.ndarray, x_m: float, y_m: float
) -> tuple[tuple[slice, slice], np.ndarray] | None:
    """Cover of one field of biogenic filaments: films drawn into lines along the eddies of the surface current.

    Filaments are bands around level lines of a stream function (where convergence gathers the film), a field of them
    is a ragged cloud of kilometres.

    Args:
        stream: smooth unit noise on the fine grid, the stream function.
        edge: unit noise on the fine grid that makes lines swell, thin out and break.
    """
    radius = float(np.clip(rng.lognormal(np.log(2700.0), 0.3), 1300.0, FILAMENT_REACH_M / 1.3))
    spacing, width_m = rng.uniform(0.1, 0.3), rng.uniform(70.0, 170.0)
    angle, aspect = rng.uniform(0.0, 2 * np.pi), rng.uniform(0.3, 0.7)
    phase, curl, bend = rng.uniform(0.0, 1.0), rng.normal(0.0, 1.6), rng.uniform(0.1, 0.3)
    box = fine.window(x_m, y_m, 1.3 * radius)
    if box is None or min(box[0].stop - box[0].start, box[1].stop - box[1].start) < 2:
        return None
    u, v = fine.around(x_m, y_m, angle, box)
    u, v = u / np.float32(radius), v / np.float32(radius)
    # straight lines along the current, bent by the stream function, wound up by an eddy at the centre
    spin = (curl * np.exp(-4.0 * (u * u + v * v))).astype(np.float32)
    psi = v * np.cos(spin) + u * np.sin(spin) + np.float32(bend) * stream[box]
    slope_y, slope_x = np.gradient(psi, fine.cell_m)
    slope = np.hypot(slope_x, slope_y)
    slope = np.maximum(slope, 0.4 * float(slope.mean()) + 1e-9)
    levels = psi / np.float32(spacing) + np.float32(phase)
    line = np.rint(levels)
    distance_m = np.abs(levels - line) * np.float32(spacing) / slope
    # every line has its own abundance of film, and runs out of it along its way
    share = np.sin(line * 2.4 + phase * 40.0) + 0.9 * np.roll(stream, fine.size // 2, axis=1)[box]
    envelope = 1.0 - u * u - (v / np.float32(aspect)) ** 2 + 0.2 * edge[box]
    half_m = 0.5 * width_m * np.clip(0.55 + 0.5 * share + 0.15 * edge[box], 0.0, 2.0)
    cover = smooth_step((half_m - distance_m) / max(25.0, fine.cell_m) + 0.5) * (half_m > 0)
    return box, (cover * smooth_step(envelope * 2.5)).astype(np.float32)
