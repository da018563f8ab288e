"""Simulated scenes: reproducible, consistent, with the class shares of OSD and the physics that they state."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from dakter.config import load
from dakter.data.fields import Grid, poisson_points
from dakter.data.simulate import LAND, LOOKALIKE, OIL, SEA, SHIP, RatesConfig, Scene, SceneConfig, simulate
from dakter.data.targets import Ship, ship_response
from dakter.errors import ConfigError
from dakter.rng import numpy_rng

NOTHING: dict[str, Any] = dict.fromkeys(
    ("coast", "ships", "trails", "trail_ship", "patches", "seeps", "low_wind", "filaments", "rain", "overlap"), 0.0
)
OSD_SHARES = np.array([0.883, 0.010, 0.056, 0.0004, 0.051])  # Krestenitis et al. 2019


def scene_config(rates: dict[str, Any] | None = None, **settings: Any) -> SceneConfig:
    data: dict[str, Any] = {"size_px": 64, "pixel_m": 160.0, **settings}
    if rates is not None:
        data["rates"] = {**NOTHING, **rates}
    return load(SceneConfig, data)


def scenes(config: SceneConfig, count: int, seed: int = 3) -> Iterator[Scene]:
    return (simulate(config, seed, index) for index in range(count))


def test_a_scene_is_a_pure_function_of_its_arguments() -> None:
    config = scene_config()
    first = simulate(config, 5, 17)
    simulate(config, 5, 18)
    again = simulate(config, 5, 17)
    for name in ("image", "label", "fractions", "sigma0_db", "measured_db"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    assert json.dumps(first.facts) == json.dumps(again.facts)
    assert (simulate(config, 6, 17).image != first.image).mean() > 0.5
    assert (simulate(config, 5, 18).image != first.image).mean() > 0.5


@pytest.mark.parametrize(("size_px", "supersample"), [(64, 3), (50, 2), (96, 4)])
def test_shapes_types_and_the_class_map_follow_the_fractions(size_px: int, supersample: int) -> None:
    config = scene_config(size_px=size_px, supersample=supersample)
    for scene in scenes(config, 12):
        assert scene.image.shape == (1, size_px, size_px)
        assert scene.image.dtype == np.uint8
        assert scene.label.shape == (size_px, size_px)
        assert scene.label.dtype == np.uint8
        assert scene.fractions.shape == (5, size_px, size_px)
        assert scene.fractions.dtype == np.float32
        assert scene.sigma0_db.dtype == scene.measured_db.dtype == np.float32
        assert np.isfinite(scene.measured_db).all()
        assert np.isfinite(scene.sigma0_db).all()
        np.testing.assert_allclose(scene.fractions.sum(axis=0), 1.0, atol=1e-5)
        cells = scene.fractions * supersample**2
        np.testing.assert_allclose(cells, np.rint(cells), atol=1e-4)
        ship = scene.fractions[SHIP] >= 0.25
        assert (scene.label[ship] == SHIP).all()
        np.testing.assert_array_equal(scene.label[~ship], scene.fractions.argmax(axis=0)[~ship])


def test_default_shares_are_those_of_osd_within_a_factor_of_one_and_a_half() -> None:
    shares = np.array([np.bincount(s.label.ravel(), minlength=5) for s in scenes(scene_config(), 500)]).sum(axis=0)
    ratio = shares / shares.sum() / OSD_SHARES
    assert (ratio < 1.5).all(), ratio
    assert (ratio > 1 / 1.5).all(), ratio


def test_the_number_of_objects_on_a_scene_goes_with_its_area_alone() -> None:
    hits = []
    for extent_m, count in ((5000.0, 4000), (20_000.0, 250)):
        grid = Grid(10, extent_m / 10)
        points = [p for i in range(count) for p in poisson_points(numpy_rng(0, "t", 0, i), grid, 2.0, 3000.0)]
        inside = sum(0 <= x < extent_m and 0 <= y < extent_m for x, y in points)
        hits.append(inside / (count * extent_m**2 / 1e8))
    assert hits == pytest.approx([2.0, 2.0], rel=0.1)


def test_open_sea_has_the_stated_number_of_looks() -> None:
    config = scene_config({}, size_px=128, looks=6.0, speckle_correlation=0.25, nesz_db=-25.0)
    for scene in scenes(config, 4):
        floor = 10 ** (0.1 * config.nesz_db)
        ratio = 10 ** (0.1 * scene.measured_db.astype(np.float64)) / (10 ** (0.1 * scene.sigma0_db) + floor)
        # ENL = mean^2 / variance; neighbours' correlation of .25 leaves (1 + 2 * .25^2 + ...)^-2 of the pixels
        assert ratio.mean() ** 2 / ratio.var() == pytest.approx(6.0, rel=0.08)
        assert ratio.mean() == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize(("wind", "least_db", "most_db"), [(5.0, 4.5, 9.5), (11.0, 1.5, 4.0)])
def test_oil_damps_by_the_stated_decibels(wind: float, least_db: float, most_db: float) -> None:
    config = scene_config({"patches": 4.0}, wind_ms=(wind, wind), incidence_near_deg=(35.0, 35.0), pixel_m=80.0)
    contrasts, damping = [], []
    for scene in scenes(config, 10):
        oil, sea = scene.fractions[OIL] == 1.0, scene.fractions[SEA] == 1.0
        if oil.sum() > 30:
            contrasts.append(float(scene.sigma0_db[sea].mean() - scene.sigma0_db[oil].mean()))
            damping.append(scene.facts["oil_damping_db"])
    assert len(contrasts) >= 5
    assert least_db < np.mean(contrasts) < most_db
    # gusts add to the contrast of one slick and cancel over many
    assert np.mean(contrasts) == pytest.approx(np.mean(damping), abs=0.8)


def test_a_mixed_pixel_mixes_power() -> None:
    config = scene_config({"trails": 6.0}, wind_ms=(5.0, 5.0))
    shares, levels = [], []
    for scene in scenes(config, 10):
        sea = scene.fractions[SEA] == 1.0
        mixed = scene.fractions[OIL] > 0
        shares.append(scene.fractions[OIL][mixed])
        levels.append(10 ** (0.1 * (scene.sigma0_db[mixed] - scene.sigma0_db[sea].mean())))
    share, level = np.concatenate(shares), np.concatenate(levels)
    assert len(share) > 300
    assert np.corrcoef(share, level)[0, 1] < -0.8


@pytest.mark.parametrize("kind", ["low_wind", "filaments", "rain"])
def test_every_kind_of_look_alike_is_dark_and_labelled(kind: str) -> None:
    config = scene_config({kind: 3.0}, wind_ms=(4.0, 6.0), pixel_m=80.0)
    num_pixels = num_objects = 0
    for scene in scenes(config, 8):
        num_objects += scene.facts["objects"][kind]
        dark, sea = scene.fractions[LOOKALIKE] > 0.7, scene.fractions[SEA] == 1.0
        assert set(np.unique(scene.label)) <= {SEA, LOOKALIKE}
        if dark.sum() > 20:
            num_pixels += int(dark.sum())
            assert scene.sigma0_db[dark].mean() < scene.sigma0_db[sea].mean() - 1.5
    assert num_pixels > 200
    assert num_objects > 8


def test_the_lee_of_land_is_dark_downwind_of_the_coast() -> None:
    config = scene_config({"coast": 1.0, "coast_share": [0.3, 0.4]}, wind_ms=(5.0, 8.0))
    lee: list[bool] = []
    away: list[bool] = []
    for scene in scenes(config, 12):
        assert scene.fractions[LAND].mean() == pytest.approx(0.35, abs=0.06)
        angle = np.deg2rad(scene.facts["wind_to_deg"])
        rows, columns = np.nonzero(scene.label == LOOKALIKE)
        for sign, found in ((-1, lee), (1, away)):  # what lies 800 m against, and with, the wind
            r = np.clip(np.rint(rows + sign * 5 * np.sin(angle)), 0, 63).astype(int)
            c = np.clip(np.rint(columns + sign * 5 * np.cos(angle)), 0, 63).astype(int)
            found.extend((scene.label[r, c] == LAND).tolist())
    assert len(lee) > 500
    assert np.mean(lee) > 1.5 * np.mean(away)


def test_darkness_alone_does_not_tell_oil_from_look_alikes() -> None:
    rates = {"patches": 2.0, "trails": 0.5, "low_wind": 0.3, "filaments": 0.5, "overlap": 0.8}
    oil, other = [], []
    for scene in scenes(scene_config(rates), 40):
        level = scene.sigma0_db - np.median(scene.sigma0_db)
        oil.append(level[scene.fractions[OIL] == 1.0])
        other.append(level[scene.fractions[LOOKALIKE] == 1.0])
    dark, alike = np.concatenate(oil), np.concatenate(other)
    assert min(len(dark), len(alike)) > 300
    # the share of look-alikes within the middle four fifths of oil
    low, high = np.percentile(dark, [10, 90])
    assert 0.25 < np.mean((alike > low) & (alike < high)) < 0.95


@pytest.mark.parametrize("overlap", [0.0, 1.0])
def test_overlap_gives_every_slick_a_dark_neighbour(overlap: float) -> None:
    num_slicks = num_neighbours = 0
    for scene in scenes(scene_config({"patches": 2.0, "seeps": 1.0, "overlap": overlap}), 10):
        objects = scene.facts["objects"]
        num_slicks += objects["patch"] + objects["seep"]
        num_neighbours += objects["low_wind"] + objects["filaments"]
    assert num_slicks > 20
    assert num_neighbours == overlap * num_slicks


def test_a_ship_returns_its_cross_section_with_sidelobes() -> None:
    grid = Grid(256, 10.0)
    ship = Ship(x_m=1280.0, y_m=1280.0, heading=0.4, length_m=150.0, beam_m=22.0, rcs_m2=2e4)
    power = ship_response(numpy_rng(0, "ship"), grid, ship)
    assert float(power.sum()) * grid.cell_m**2 == pytest.approx(ship.rcs_m2, rel=0.05)
    # a cross: along the axes the response is far above what it is off them
    cross, corner = power[128 - 4 : 128 + 4, 190:].max(), power[190:, 190:].max()
    assert cross > 20 * corner
    # -20 dB at the first sidelobe, falling with the square of the distance: about -46 dB 620 m away
    assert 1e4 < power.max() / cross < 1e6


def test_ships_are_bright_at_both_scales() -> None:
    for pixel_m, size in ((160.0, 64), (40.0, 128)):
        config = scene_config({"ships": 6.0}, pixel_m=pixel_m, size_px=size)
        excess = [
            float(scene.sigma0_db[scene.label == SHIP].mean() - np.median(scene.sigma0_db))
            for scene in scenes(config, 5)
            if (scene.label == SHIP).any()
        ]
        assert len(excess) >= 3
        assert np.mean(excess) > 8.0


def test_rates_make_a_set_rich_in_oil() -> None:
    rich = scene_config({**RatesConfig().dump(), "patches": 3.0, "trails": 0.5, "coast": 0.0})
    share = np.mean([scene.fractions[OIL].mean() for scene in scenes(rich, 25)])
    assert share > 0.03


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"wind_ms": (9.0, 4.0)}, "wind_ms"),
        ({"wind_ms": (0.5, 9.0)}, "wind_ms"),
        ({"incidence_near_deg": (10.0, 30.0)}, "incidence_near_deg"),
        ({"stretch_percentiles": (50.0, 50.0)}, "stretch_percentiles"),
        ({"rates": {"coast_share": [0.5, 1.5]}}, "rates.coast_share"),
        ({"looks": 0.0}, "looks"),
    ],
)
def test_impossible_settings_are_refused_by_name(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        simulate(load(SceneConfig, {"size_px": 32, **settings}), 0, 0)
