"""Simulated C-band VV scenes of the sea, with class maps and true class fractions in the classes of OSD.

A scene is a pure function of (settings, seed, index). Wind, films, land and ships are laid out in metres; what is
sharp is drawn on a grid ``supersample`` times finer than the pixel and averaged, in linear power, into it. So the
class fractions of a pixel are those of its cells, and mixed pixels have mixed backscatter.

The order of the physics: wind field -> (calm patches, lee of land, rain) -> CMOD5.N with its fall-off at low wind ->
damping by films, in dB, dependent on the local wind -> land and ships -> mean over the pixel -> noise floor ->
speckle -> the per-image stretch to 8 bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dakter.config import Config, setting
from dakter.data import backscatter, lookalikes, slicks, speckle_model, targets
from dakter.data.fields import Grid, coarser, finer, fractal, poisson_points
from dakter.errors import ConfigError
from dakter.rng import numpy_rng
from dakter.schema import OSD

SEA, OIL, LOOKALIKE, SHIP, LAND = range(len(OSD))

# A dark area without oil counts as look-alike where it is at least this much darker than the open sea around it: about
# what the eye makes out above speckle (ours).
LOOKALIKE_DB = 2.0
# A pixel is labelled ship where ships fill a quarter of it: their echo, some 20 dB above the sea, fills it all (ours).
SHIP_SHARE = 0.25


class RatesConfig(Config):
    """How often each kind of thing occurs. The defaults give the pixel shares of OSD (Krestenitis et al. 2019)."""

    coast: float = setting(0.17, "share of scenes with land", ge=0, le=1)
    coast_share: tuple[float, float] = setting((0.04, 0.56), "least and greatest share of such a scene that is land")
    ships: float = setting(2.0, "ships under way", unit="per 100 km²", ge=0)
    trails: float = setting(0.06, "oil trails of ships", unit="per 100 km²", ge=0)
    trail_ship: float = setting(0.6, "share of trails with the ship still at their head", ge=0, le=1)
    patches: float = setting(0.47, "oil patches", unit="per 100 km²", ge=0)
    seeps: float = setting(0.1, "thin meandering oil slicks", unit="per 100 km²", ge=0)
    low_wind: float = setting(0.35, "calm patches", unit="per 100 km²", ge=0)
    filaments: float = setting(0.15, "fields of biogenic filaments", unit="per 100 km²", ge=0)
    rain: float = setting(0.06, "rain cells", unit="per 100 km²", ge=0)
    overlap: float = setting(0.3, "chance that a slick lies in or beside a calm patch or filaments", ge=0, le=1)


class SceneConfig(Config):
    """A simulated scene: its geometry, sensor, wind and what occurs in it."""

    size_px: int = setting(256, "rows and columns of a scene", unit="px", ge=16, le=1024)
    pixel_m: float = setting(40.0, "pixel spacing", unit="m", ge=5, le=500)
    supersample: int = setting(3, "cells per pixel along each axis when classes and films are drawn", ge=1, le=8)
    incidence_near_deg: tuple[float, float] = setting(
        (29.1, 45.0), "range of the incidence angle at the near edge (Sentinel-1 IW: 29.1 to 46.0)", unit="deg"
    )
    wind_ms: tuple[float, float] = setting((3.0, 11.0), "range of a scene's mean wind at 10 m", unit="m/s")
    wind_scale_ms: float = setting(7.0, "scale of the Rayleigh-shaped wind distribution in it", unit="m/s", gt=0)
    looks: float = setting(10.0, "equivalent number of looks at the pixel", gt=0, le=1000)
    speckle_correlation: float = setting(
        0.25, "speckle correlation of direct neighbours", ge=0, le=speckle_model.MAX_CORRELATION
    )
    nesz_db: float = setting(-24.0, "noise-equivalent sigma0 (Sentinel-1 IW: -22 at worst)", unit="dB", ge=-60, le=0)
    stretch_percentiles: tuple[float, float] = setting((0.5, 99.5), "percentiles that become 0 and 255", unit="%")
    stretch_min_db: float = setting(12.0, "least span of the stretch", unit="dB", gt=0)
    rates: RatesConfig = RatesConfig()


@dataclass(frozen=True)
class Scene:
    """One simulated scene of ``H = W = size_px``.

    image: uint8 (1, H, W), after the stretch.
    label: uint8 (H, W), classes of ``schema.OSD``: the largest fraction, or ship where ships fill a quarter.
    fractions: float32 (5, H, W), true class fractions of each pixel, summing to 1.
    sigma0_db: float32 (H, W), backscatter without noise floor and speckle.
    measured_db: float32 (H, W), with both: what was stretched to ``image``.
    facts: what was drawn, JSON-able.
    """

    image: np.ndarray
    label: np.ndarray
    fractions: np.ndarray
    sigma0_db: np.ndarray
    measured_db: np.ndarray
    facts: dict[str, Any]


def simulate(config: SceneConfig, seed: int, index: int) -> Scene:
    """Scene number ``index``: the same arguments give the same arrays, whatever else is drawn.

    Raises:
        ConfigError: a range whose ends are the wrong way round or outside what the backscatter model is valid for.
    """
    _check(config)
    return _Builder(config, seed, index).scene()


def _check(config: SceneConfig) -> None:
    bounds = {
        "incidence_near_deg": (config.incidence_near_deg, backscatter.VALID_INCIDENCE_DEG),
        "wind_ms": (config.wind_ms, backscatter.VALID_WIND_MS),
        "rates.coast_share": (config.rates.coast_share, (0.0, 1.0)),
        "stretch_percentiles": (config.stretch_percentiles, (0.0, 100.0)),
    }
    for name, ((low, high), (least, most)) in bounds.items():
        if not least <= low <= high <= most:
            raise ConfigError(
                f"setting {name} is ({low:g}, {high:g}); expected two values, ascending, within {least:g} to {most:g}"
            )
    if config.stretch_percentiles[0] == config.stretch_percentiles[1]:
        raise ConfigError(f"setting stretch_percentiles is {config.stretch_percentiles}; expected two different values")


class _Builder:
    """The steps of one scene, sharing its grids, its wind and its random streams (one a step)."""

    def __init__(self, config: SceneConfig, seed: int, index: int) -> None:
        self.config, self.seed, self.index = config, seed, index
        self.pixels = Grid(config.size_px, config.pixel_m)
        self.fine = Grid(config.size_px * config.supersample, config.pixel_m / config.supersample)
        rng = self.rng("conditions")
        near = float(rng.uniform(*config.incidence_near_deg))
        self.incidence_deg = backscatter.incidence_across_range(near, self.pixels.axis_m()).astype(np.float32)
        # Rayleigh winds (Weibull of shape 2, the usual fit over the sea), cut to the stated range
        low, high = (1.0 - np.exp(-((w / config.wind_scale_ms) ** 2)) for w in config.wind_ms)
        self.wind_ms = float(config.wind_scale_ms * np.sqrt(-np.log(1.0 - rng.uniform(low, high))))
        self.wind_angle = float(rng.uniform(0.0, 2 * np.pi))  # where it blows to, from +x (look) towards +y
        self.land_share = float(rng.uniform(*config.rates.coast_share)) if rng.random() < config.rates.coast else 0.0

    def rng(self, step: str) -> np.random.Generator:
        return numpy_rng(self.seed, f"simulate/{step}", 0, self.index)

    def scene(self) -> Scene:
        config, s = self.config, self.config.supersample
        land = self._land()
        oil, calm, films = self._layout()
        sea_db, darkening_db, wind, num_rain = self._sea(land, calm)
        oil_db, film_db, oil_there = self._films(oil, films, wind)

        dark_db = film_db + (finer(darkening_db, s) if darkening_db.any() else np.float32(0.0))
        classes = np.where(dark_db >= LOOKALIKE_DB, np.uint8(LOOKALIKE), np.uint8(SEA))
        classes[oil_there] = OIL
        # two films on the same water damp the same waves: the stronger counts
        decibel = finer(sea_db, s) - np.maximum(oil_db, film_db)
        power = np.exp(decibel * np.float32(np.log(10.0) / 10.0))
        ships = self._ships(oil, land, power, classes)
        if land is not None:
            ground = targets.land_sigma0(self.rng("land surface"), self.pixels)
            power = np.where(land, np.repeat(np.repeat(ground, s, 0), s, 1), power)
            classes[land] = LAND

        fractions = np.stack([coarser((classes == k).astype(np.float32), s) for k in range(len(OSD))])
        label = fractions.argmax(axis=0).astype(np.uint8)
        label[fractions[SHIP] >= SHIP_SHARE] = SHIP
        sigma0 = coarser(power, s)
        noisy = sigma0 + np.float32(10 ** (0.1 * config.nesz_db))
        noisy = noisy * speckle_model.speckle(self.rng("speckle"), sigma0.shape, config.looks,
                                              config.speckle_correlation)  # fmt: skip
        measured_db = 10 * np.log10(np.maximum(noisy, 1e-9)).astype(np.float32)
        image, black_db, white_db = speckle_model.stretch_to_8bit(
            measured_db, config.stretch_percentiles, config.stretch_min_db
        )
        facts = {
            "wind_ms": self.wind_ms,
            "wind_to_deg": float(np.rad2deg(self.wind_angle)),
            "incidence_deg": [float(self.incidence_deg[0]), float(self.incidence_deg[-1])],
            "looks": config.looks,
            "nesz_db": config.nesz_db,
            "grey_0_db": black_db,
            "grey_255_db": white_db,
            "objects": {
                "coast": int(land is not None),
                **{kind: sum(o.kind == kind for o in oil) for kind in ("trail", "patch", "seep")},
                "low_wind": len(calm), "filaments": len(films), "rain": num_rain, "ships": ships,
            },
            "oil_damping_db": float(oil_db[oil_there].mean()) if oil_there.any() else None,
            "class_shares": [float(v) for v in fractions.mean(axis=(1, 2), dtype=np.float64)],
        }  # fmt: skip
        return Scene(image[None], label, fractions, (10 * np.log10(sigma0)).astype(np.float32), measured_db, facts)

    def _land(self) -> np.ndarray | None:
        if self.land_share == 0.0:
            return None
        return targets.draw_land(self.rng("coast"), self.pixels, self.config.supersample, self.land_share)

    def _layout(self) -> tuple[list[slicks.OilSlick], list[tuple[float, float]], list[tuple[float, float]]]:
        """Oil slicks, centres of calm patches, centres of filament fields."""
        rates, rng = self.config.rates, self.rng("oil layout")
        oil = slicks.draw_trails(rng, self.pixels, rates.trails, self.wind_angle, self.wind_ms)
        oil += slicks.draw_patches(rng, self.pixels, rates.patches, self.wind_angle, rates.seeps)
        rng = self.rng("look-alike layout")
        calm = lookalikes.draw_low_wind(rng, self.pixels, rates.low_wind)
        films = poisson_points(rng, self.pixels, rates.filaments, slicks.FILAMENT_REACH_M)
        # company for oil, so that darkness alone does not tell: a neighbour at up to half the slick's length
        for slick in oil:
            if rng.random() < rates.overlap:
                away, bearing = rng.uniform(0.0, 0.5) * slick.length_m, rng.uniform(0, 2 * np.pi)
                spot = (slick.x_m + away * np.cos(bearing), slick.y_m + away * np.sin(bearing))
                (calm if rng.random() < 0.5 else films).append((float(spot[0]), float(spot[1])))
        return oil, calm, films

    def _sea(
        self, land: np.ndarray | None, calm: list[tuple[float, float]]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
        """On the pixel grid: sea without films (dB), its darkening by wind and rain (dB), wind (m/s); rain cells."""
        background, direction = lookalikes.wind_field(self.rng("wind"), self.pixels, self.wind_ms, self.wind_angle)
        wind = background
        if calm:
            wind = wind * lookalikes.low_wind_patches(self.rng("low wind"), self.pixels, calm, self.wind_angle)
        if land is not None:
            share = coarser(land.astype(np.float32), self.config.supersample)
            wind = wind * lookalikes.lee_factor(self.rng("lee"), self.pixels, share, self.wind_angle)
        rain_db, gust_ms, num_rain = lookalikes.rain_cells(
            self.rng("rain"), self.pixels, self.config.rates.rain, self.wind_angle
        )
        wind = np.clip(wind + gust_ms, 0.3, backscatter.VALID_WIND_MS[1]).astype(np.float32)
        # the radar looks along +x, so a wind that blows to 180 degrees blows at it: upwind
        relative_deg = np.rad2deg(direction) - 180.0
        open_db = 10 * np.log10(backscatter.sea_sigma0(background, relative_deg, self.incidence_deg[None]))
        sea_db = open_db
        if wind is not background:
            sea_db = 10 * np.log10(backscatter.sea_sigma0(wind, relative_deg, self.incidence_deg[None]))
        sea_db = sea_db - rain_db
        darkening_db = np.maximum(open_db - sea_db, 0.0)
        # currents and young waves roughen the sea a little beside the wind (0.2-0.5 dB, ours)
        rng = self.rng("roughness")
        texture = fractal(rng, self.pixels, outer_m=1500.0, slope=2.4, inner_m=30.0) * rng.uniform(0.2, 0.5)
        return (sea_db + texture).astype(np.float32), darkening_db.astype(np.float32), wind, num_rain

    def _films(
        self, oil: list[slicks.OilSlick], films: list[tuple[float, float]], wind: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """On the fine grid: damping by oil and by biogenic film (dB), and where oil lies (bool)."""
        n = self.fine.size
        oil_db, film_db = np.zeros((n, n), dtype=np.float32), np.zeros((n, n), dtype=np.float32)
        oil_there = np.zeros((n, n), dtype=bool)
        if not oil and not films:
            return oil_db, film_db, oil_there
        noises = slicks.Noises.draw(self.rng("outlines"), self.fine, self.wind_angle)
        s = self.config.supersample
        if oil:
            fresh_db = finer(backscatter.oil_damping_db(wind), s)
            for slick in oil:
                if (drawn := slicks.oil_cover(self.fine, noises, slick)) is not None:
                    box, cover = drawn
                    # thinner sheen at the edges and in streaks
                    thickness = np.clip(0.8 + 0.15 * noises.edge[box] + 0.1 * noises.streak[box], 0.5, 1.0)
                    damping = fresh_db[box] * cover * thickness * np.float32(slick.strength)
                    np.maximum(oil_db[box], damping, out=oil_db[box])
                    oil_there[box] |= cover > 0.5
        if films:
            rng = self.rng("filaments")
            closed_db = finer(backscatter.film_damping_db(wind), s)
            stream = finer(fractal(rng, self.pixels, outer_m=4000.0, slope=6.0, inner_m=250.0), s)
            for x, y in films:
                if (drawn := slicks.filament_cover(rng, self.fine, stream, noises.edge, x, y)) is not None:
                    box, cover = drawn
                    damping = closed_db[box] * cover * np.float32(rng.uniform(0.6, 1.0))
                    np.maximum(film_db[box], damping, out=film_db[box])
        return oil_db, film_db, oil_there

    def _ships(
        self, oil: list[slicks.OilSlick], land: np.ndarray | None, power: np.ndarray, classes: np.ndarray
    ) -> int:
        """Adds ships to ``power`` and ``classes`` in place (land is laid over both later); returns their number."""
        rates, rng = self.config.rates, self.rng("ships")
        places = [(x, y, rng.uniform(0, 2 * np.pi)) for x, y in poisson_points(rng, self.pixels, rates.ships, 400.0)]
        for slick in oil:
            if slick.kind == "trail" and rng.random() < rates.trail_ship:
                places.append((*slick.head_point(), slick.angle))
        num_ships = 0
        for x, y, heading in places:
            row, column = int(y // self.fine.cell_m), int(x // self.fine.cell_m)
            inside = 0 <= row < self.fine.size and 0 <= column < self.fine.size
            ship = targets.draw_ship(rng, x, y, heading, float(self.incidence_deg.mean()))
            drawn = targets.ship_mask(self.fine, ship)
            if drawn is None or (inside and land is not None and land[row, column]):
                continue
            box, mask = drawn
            classes[box][mask] = SHIP
            power += targets.ship_response(rng, self.fine, ship)
            num_ships += int(inside)
        return num_ships
