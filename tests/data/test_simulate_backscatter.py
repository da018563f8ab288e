"""The backscatter models of the simulator against values worked out apart from them."""

from __future__ import annotations

import numpy as np
import pytest

from dakter.data import backscatter


# (incidence, wind, direction) -> sigma0 in dB, from a scalar transcription of the published form with the published
# coefficients, kept apart from the array code under test.
@pytest.mark.parametrize(
    ("incidence", "wind", "direction", "expected_db"),
    [
        (20, 3, 0, -5.83253),
        (25, 2.5, 120, -13.38763),
        (30, 5, 0, -13.01846),
        (30, 8, 90, -12.81052),
        (35, 10, 45, -12.69483),
        (40, 5, 180, -19.28266),
        (40, 15, 0, -9.58744),
        (45, 7, 135, -20.28007),
        (55, 12, 90, -21.20357),
        (58, 30, 10, -10.91351),
    ],
)
def test_cmod5n_gives_the_published_values(incidence: float, wind: float, direction: float, expected_db: float) -> None:
    sigma0 = backscatter.cmod5n(np.array(wind), np.array(direction), np.array(incidence))
    assert 10 * np.log10(float(sigma0)) == pytest.approx(expected_db, abs=1e-4)


def test_cmod5n_broadcasts_and_orders_directions() -> None:
    wind, angle = np.linspace(3, 15, 7)[:, None], np.array([0.0, 90.0, 180.0])
    sigma0 = backscatter.cmod5n(wind, angle, np.array(35.0))
    assert sigma0.shape == (7, 3)
    assert (np.diff(sigma0, axis=0) > 0).all()  # rises with wind
    assert (sigma0[:, 0] > sigma0[:, 2]).all()  # upwind over downwind
    assert (sigma0[:, 2] > sigma0[:, 1]).all()  # downwind over crosswind


def test_low_wind_takes_the_backscatter_away() -> None:
    factor = backscatter.low_wind_factor(np.array([0.5, 2.0, 3.5, 8.0]))
    assert factor[0] == pytest.approx(backscatter.BRAGG_RESIDUAL, abs=2e-3)
    assert factor[1] == pytest.approx((1 + backscatter.BRAGG_RESIDUAL) / 2)
    assert factor[2:] == pytest.approx([1.0, 1.0], abs=2e-3)


def test_damping_is_strong_at_moderate_wind_and_gone_at_both_ends() -> None:
    oil = backscatter.oil_damping_db(np.array([1.0, 3.0, 5.0, 8.0, 11.0, 16.0]))
    assert oil[0] == 0
    assert oil[-1] == 0
    assert (oil[1:5] >= 3).all()
    assert (oil[1:5] <= 10).all()
    assert oil[2] > oil[3] > oil[4]
    film = backscatter.film_damping_db(np.array([3.0, 5.0, 7.0, 9.0]))
    assert (np.diff(film) < 0).all()
    assert film[-1] == 0


def test_incidence_spans_the_swath_of_sentinel_1() -> None:
    # the IW swath: 250 km from 29.1 degrees to between 44 and 46, by the height of the orbit
    inc = backscatter.incidence_across_range(29.1, np.array([0.0, 125e3, 250e3]))
    assert inc[0] == pytest.approx(29.1)
    assert 44 < inc[2] < 46
    assert inc[1] - inc[0] > inc[2] - inc[1]
