"""C-band VV backscatter of the sea: CMOD5.N, the fall-off at low wind, and damping by films.

Every number below is from the literature that is named beside it, or is called ours. Angles are degrees, winds m/s at
10 m (equivalent neutral), backscatter is the normalised radar cross section sigma0 in linear power unless ``_db``.
"""

from __future__ import annotations

import numpy as np
from scipy.special import ndtr

# Coefficients c1..c28 of CMOD5.N, index 0 unused: Hersbach (2010), Comparison of C-band scatterometer CMOD5.N
# equivalent neutral winds with ECMWF, J. Atmos. Oceanic Technol. 27, 721-736, table 1.
_C = (
    0.0, -0.6878, -0.7957, 0.3380, -0.1728, 0.0000, 0.0040, 0.1103, 0.0159, 6.7329, 2.7713, -2.2885, 0.4971, -0.7250,
    0.0450, 0.0066, 0.3222, 0.0120, 22.7000, 2.0813, 3.0000, 8.3659, -3.3428, 1.3236, 6.2437, 2.3893, 0.3249, 4.1590,
    1.6930,
)  # fmt: skip

# Where CMOD5 and CMOD5.N were fitted: ERS-2 incidence angles, and winds up to where aircraft data end. Below about
# 2 m/s hardly any collocation constrains the function; ``low_wind_factor`` takes over there.
VALID_INCIDENCE_DEG = (18.0, 58.0)
VALID_WIND_MS = (2.0, 35.0)

# Orbit height of Sentinel-1 and mean Earth radius, km: only for how incidence grows across range.
_ORBIT_KM = 693.0
_EARTH_KM = 6371.0

# Bragg waves of C band (4-8 cm) need a wind above about 2 m/s to grow (Donelan & Pierson 1987, J. Geophys. Res. 92,
# 4971-5029); within a resolution cell the local wind scatters about its mean, so the loss is gradual and equals the
# share of the cell above the threshold (Shankaranarayanan & Donelan 2001, J. Geophys. Res. 106, 19955-19970).
# The spread and the residual (specular and advected waves) are ours.
BRAGG_THRESHOLD_MS = 2.0
BRAGG_SPREAD_MS = 0.5
BRAGG_RESIDUAL = 0.03


def cmod5n(wind_ms: np.ndarray, direction_deg: np.ndarray, incidence_deg: np.ndarray) -> np.ndarray:
    """sigma0 (linear) of the sea at C-band VV; arguments broadcast.

    Args:
        wind_ms: equivalent neutral wind at 10 m, >= 0; sourced for ``VALID_WIND_MS``.
        direction_deg: angle between wind and radar look, 0 upwind (blowing at the radar), 180 downwind, 90 crosswind.
        incidence_deg: sourced for ``VALID_INCIDENCE_DEG``.

    Source: Hersbach, Stoffelen & de Haan (2007), J. Geophys. Res. 112, C03006, appendix A (form); Hersbach (2010)
    (coefficients).
    """
    c = _C
    v = np.asarray(wind_ms)
    cos_phi = np.cos(np.deg2rad(direction_deg))
    x = (np.asarray(incidence_deg) - 40.0) / 25.0

    # B0, the mean over direction (eqs. A5-A7)
    a0 = c[1] + x * (c[2] + x * (c[3] + x * c[4]))
    a1 = c[5] + c[6] * x
    a2 = c[7] + c[8] * x
    gamma = c[9] + x * (c[10] + x * c[11])
    s0 = c[12] + c[13] * x
    s = a2 * v
    g0 = 1.0 / (1.0 + np.exp(-s0))
    # the power law for s < s0; where s0 <= 0 it is never reached, since s >= 0
    safe_s0 = np.where(s0 > 0, s0, 1.0)
    low = g0 * (np.maximum(s, 0.0) / safe_s0) ** (safe_s0 * (1.0 - g0))
    f = np.where(s < s0, low, 1.0 / (1.0 + np.exp(-s)))
    b0 = f**gamma * 10.0 ** (a0 + a1 * v)

    # B1, upwind against downwind (eq. A8)
    b1 = c[14] * (1.0 + x) - c[15] * v * (0.5 + x - np.tanh(4.0 * (x + c[16] + c[17] * v)))
    b1 = b1 / (1.0 + np.exp(0.34 * (v - c[18])))

    # B2, upwind against crosswind (eqs. A9-A12)
    y0, n = c[19], c[20]
    v0 = c[21] + x * (c[22] + x * c[23])
    d1 = c[24] + x * (c[25] + x * c[26])
    d2 = c[27] + c[28] * x
    y = v / v0 + 1.0
    bent = y0 - (y0 - 1.0) / n + (y - 1.0) ** n / (n * (y0 - 1.0) ** (n - 1.0))
    v2 = np.where(y < y0, bent, y)
    b2 = (d2 * v2 - d1) * np.exp(-v2)

    return b0 * (1.0 + b1 * cos_phi + b2 * (2.0 * cos_phi**2 - 1.0)) ** 1.6


def low_wind_factor(wind_ms: np.ndarray) -> np.ndarray:
    """Factor in (0, 1] on sigma0 for winds near and below the growth threshold of C-band Bragg waves."""
    above = ndtr((np.asarray(wind_ms) - BRAGG_THRESHOLD_MS) / BRAGG_SPREAD_MS)
    return BRAGG_RESIDUAL + (1.0 - BRAGG_RESIDUAL) * above


def sea_sigma0(wind_ms: np.ndarray, direction_deg: np.ndarray, incidence_deg: np.ndarray) -> np.ndarray:
    """sigma0 (linear) of a clean sea: CMOD5.N times the fall-off at low wind."""
    return cmod5n(wind_ms, direction_deg, incidence_deg) * low_wind_factor(wind_ms)


# Damping against wind, dB at C-band VV. Mineral oil: reported contrasts lie between 3 and 10 dB at moderate wind and
# fall as wind waves and mixing take over, to nothing at 10-14 m/s (Gade, Alpers, Huehnerfuss, Masuko & Kobayashi
# 1998, J. Geophys. Res. 103, 18851-18866; Brekke & Solberg 2005, Remote Sens. Environ. 95, 1-13; Alpers, Holt & Zeng
# 2017, Remote Sens. Environ. 201, 133-147). Biogenic films damp as strongly in light wind, and are torn and mixed
# away above about 7 m/s (the same reviews). Below the Bragg threshold there is nothing to damp. The straight lines
# between these anchors are ours.
_OIL_ANCHORS = ((1.5, 0.0), (3.0, 9.0), (5.0, 10.0), (8.0, 7.0), (11.0, 4.0), (14.0, 1.0), (16.0, 0.0))
_FILM_ANCHORS = ((1.5, 0.0), (3.0, 7.0), (5.0, 6.0), (7.0, 2.5), (8.5, 0.0))


def _between(x: np.ndarray, anchors: tuple[tuple[float, float], ...]) -> np.ndarray:
    """Straight lines between (x, y) anchors, level beyond them."""
    table = np.array(anchors)
    return np.asarray(np.interp(x, table[:, 0], table[:, 1]))


def oil_damping_db(wind_ms: np.ndarray) -> np.ndarray:
    """Damping (dB, >= 0) by a fresh, closed mineral oil slick; thinner or emulsified oil is a share of it."""
    return _between(wind_ms, _OIL_ANCHORS)


def film_damping_db(wind_ms: np.ndarray) -> np.ndarray:
    """Damping (dB, >= 0) by a closed biogenic film."""
    return _between(wind_ms, _FILM_ANCHORS)


def incidence_across_range(near_deg: float, ground_range_m: np.ndarray) -> np.ndarray:
    """Incidence angle (degrees) at a ground range behind the near edge, over a spherical Earth from 693 km."""
    table_deg = np.linspace(near_deg, min(near_deg + 30.0, 75.0), 256)
    inc = np.deg2rad(table_deg)
    # sine rule in the triangle of Earth centre, satellite and target; arc = Earth radius times the central angle
    look = np.arcsin(np.sin(inc) * _EARTH_KM / (_EARTH_KM + _ORBIT_KM))
    arc_m = _EARTH_KM * 1e3 * (inc - look)
    return np.interp(ground_range_m, arc_m - arc_m[0], table_deg)
