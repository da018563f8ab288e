"""Quotas keep as many samples as they can, and the same ones every time."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from dakter.errors import ConfigError
from dakter.evaluate.quotas import thin

INDICES = np.arange(1000, 1100)
OIL = np.arange(100) % 5 == 0


def test_a_quota_is_reached_by_taking_out_others_alone() -> None:
    kept = thin({"oil": OIL}, {"oil": 0.5}, INDICES, seed=0)
    assert kept[OIL].all()
    assert kept.sum() == 40
    assert thin({"oil": OIL}, {"oil": 0.3}, INDICES, seed=0).sum() == 66  # 20 of 67 would be too few


def test_a_quota_that_is_met_takes_nothing() -> None:
    assert thin({"oil": OIL}, {"oil": 0.2}, INDICES, seed=0).all()
    assert thin({}, {}, INDICES, seed=0).all()
    assert thin({"oil": OIL[:0]}, {"oil": 0.2}, INDICES[:0], seed=0).tolist() == []


def test_the_choice_follows_from_seed_and_index() -> None:
    kept = thin({"oil": OIL}, {"oil": 0.5}, INDICES, seed=0)
    order = np.random.default_rng(1).permutation(100)
    shuffled = thin({"oil": OIL[order]}, {"oil": 0.5}, INDICES[order], seed=0)
    assert sorted(INDICES[order][shuffled].tolist()) == INDICES[kept].tolist()
    assert not np.array_equal(kept, thin({"oil": OIL}, {"oil": 0.5}, INDICES, seed=1))
    stricter = thin({"oil": OIL}, {"oil": 0.6}, INDICES, seed=0)
    assert (kept | ~stricter).all(), "a higher quota keeps some of the same"


@pytest.mark.parametrize("seed", range(6))
def test_no_larger_choice_meets_several_quotas(seed: int) -> None:
    rng = np.random.default_rng(seed)
    holds = {"oil": rng.random(10) < 0.4, "ship": rng.random(10) < 0.4}
    quotas = {"oil": 0.5, "ship": 0.4}

    def meets(chosen: np.ndarray) -> bool:
        return all(holds[name][chosen].sum() >= share * chosen.sum() - 1e-9 for name, share in quotas.items())

    every = (np.array(bits, bool) for bits in itertools.product((0, 1), repeat=10))
    best = max(int(chosen.sum()) for chosen in every if meets(chosen))
    if not best:
        with pytest.raises(ConfigError):
            thin(holds, quotas, np.arange(10), seed)
        return
    kept = thin(holds, quotas, np.arange(10), seed)
    assert meets(kept)
    assert kept.sum() == best


def test_what_cannot_be_reached_says_what_there_is() -> None:
    with pytest.raises(ConfigError, match=r"ship: 0\.1 asked for; 0 of 100 samples .* contain it, a share of 0"):
        thin({"ship": np.zeros(100, bool)}, {"ship": 0.1}, INDICES, seed=0)
    with pytest.raises(ConfigError, match=r"oil: 0\.6 asked for; 20 of 100 .* 0\.2\n.*land: 0\.6 .* 80 of 100 .* 0\.8"):
        thin({"oil": OIL, "land": ~OIL}, {"oil": 0.6, "land": 0.6}, INDICES, seed=0)
