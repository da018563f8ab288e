"""Speckle has the law and the correlation that it states; the stretch is linear in dB."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from dakter.data.speckle_model import speckle, stretch_to_8bit
from dakter.rng import numpy_rng


@pytest.mark.parametrize("looks", [1.0, 4.4, 10.0])
def test_speckle_is_gamma_of_the_stated_looks(looks: float) -> None:
    values = speckle(numpy_rng(0, "test", 0, int(looks)), (400, 400), looks, 0.0)
    assert float(values.mean()) == pytest.approx(1.0, abs=0.01)
    assert float(values.mean() ** 2 / values.var()) == pytest.approx(looks, rel=0.03)
    assert stats.kstest(values.ravel()[::7], stats.gamma(looks, scale=1 / looks).cdf).pvalue > 1e-3


@pytest.mark.parametrize("correlation", [0.25, 0.6])
def test_neighbours_are_correlated_as_stated_and_the_law_stays(correlation: float) -> None:
    values = speckle(numpy_rng(1, "test"), (600, 600), 10.0, correlation)
    assert float(values.mean() ** 2 / values.var()) == pytest.approx(10.0, rel=0.05)
    v = values - values.mean()
    across = [float((v[:, k:] * v[:, : 600 - k]).mean() / v.var()) for k in range(1, 4)]
    down = float((v[1:] * v[:-1]).mean() / v.var())
    # the copula shifts the correlation of intensities by a few hundredths
    assert across[0] == pytest.approx(correlation, abs=0.03)
    assert down == pytest.approx(correlation, abs=0.03)
    assert across[1] < correlation / 2
    assert abs(across[2]) < 0.03


def test_stretch_is_linear_in_db_and_keeps_its_least_span() -> None:
    db = np.linspace(-30.0, 0.0, 3001)[None]
    image, black, white = stretch_to_8bit(db, (10.0, 90.0), 12.0)
    assert [black, white] == pytest.approx([-27.0, -3.0])
    assert image.dtype == np.uint8
    assert image[0, 0] == 0
    assert image[0, -1] == 255
    assert image[0, 1500] in (127, 128)
    _, black, white = stretch_to_8bit(np.linspace(-16.0, -14.0, 50), (0.0, 100.0), 12.0)
    assert [black, white] == pytest.approx([-21.0, -9.0])
