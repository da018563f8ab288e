from __future__ import annotations

import re

import numpy as np
import pytest

from dakter.config import load
from dakter.diffusion.label_maps import Candidates, Given, MapPool, RenderConfig, kinds_of
from dakter.errors import ConfigError, DataError
from dakter.schema import IGNORE

NAMES = ("sea surface", "oil spill", "ship")


def maps_of(*oil_px: int) -> np.ndarray:
    """One map of 8 x 8 for each number of oil pixels, from the first corner on."""
    found = np.zeros((len(oil_px), 64), np.uint8)
    for row, count in zip(found, oil_px, strict=True):
        row[:count] = 1
    return found.reshape(-1, 8, 8)


def pool_of(
    config: RenderConfig, maps: np.ndarray, seed: int = 0, turned: bool = True, pieces: tuple[int, ...] = ()
) -> MapPool:
    """Of maps offered in pieces, whose images are told apart by their descriptors: three numbers from 3 i on."""
    images = np.arange(len(maps)).reshape(-1, 1, 1, 1)
    found = Candidates(config, NAMES, seed, lambda x: (3.0 * x.reshape(-1, 1) + np.arange(3)).astype(np.float32))
    for part, own in zip(np.split(maps, pieces), np.split(images, pieces), strict=True):
        found.offer(own, part, "masks")
    return found.pool(turned=turned)


@pytest.mark.parametrize("start", [0, 1_000_003, 10**12])
@pytest.mark.parametrize("count", [50, 512])
def test_stated_shares_hold_in_every_run_of_samples(start: int, count: int) -> None:
    kinds = kinds_of((0.5, 0.125, 0.1), 7, range(start, start + count))
    found = np.bincount(kinds, minlength=4)
    assert found == pytest.approx(count * np.array([0.5, 0.125, 0.1, 0.275]), abs=4)


def test_what_a_sample_gets_follows_from_its_index_and_the_seed_alone() -> None:
    config = RenderConfig(quotas={"oil spill": 0.4}, others=0.3, contains_px=8)
    maps = maps_of(*range(40))
    whole, part = pool_of(config, maps).give(np.arange(60)), pool_of(config, maps).give(np.array([41, 3]))
    assert np.array_equal(whole.maps_BHW[[41, 3]], part.maps_BHW)
    assert whole.descriptors is not None
    assert part.descriptors is not None
    assert np.array_equal(whole.descriptors[[41, 3]], part.descriptors)
    other = pool_of(config, maps, seed=1).give(np.arange(60))
    assert not np.array_equal(other.maps_BHW, whole.maps_BHW)
    assert not np.array_equal(other.have_map_B, whole.have_map_B), "nor are the same samples drawn for maps"


def test_quotas_get_maps_with_their_class_turned_and_with_what_their_image_is_like() -> None:
    maps = maps_of(0, 3, 9, 12, 0, 20)
    config = RenderConfig(quotas={"oil spill": 0.5}, others=0.25, contains_px=4)
    indices = np.arange(400)
    given, kinds = pool_of(config, maps).give(indices), kinds_of(config.shares, 0, indices)
    oil = (given.maps_BHW == 1).sum(axis=(1, 2))
    assert set(oil[kinds == 0].tolist()) == {9, 12, 20}
    assert set(oil[kinds == 1].tolist()) == {0, 3, 9, 12, 20}
    assert (given.maps_BHW[kinds == 2] == IGNORE).all()
    assert given.have_map_B.tolist() == (kinds < 2).tolist()
    source = {9: 2, 12: 3, 20: 5}
    assert given.descriptors is not None
    for row in np.flatnonzero(kinds == 0):
        assert given.descriptors[row].tolist() == [3.0 * source[oil[row]] + i for i in range(3)]
    views = {given.maps_BHW[row].tobytes() for row in np.flatnonzero(oil == 12)}
    assert len(views) == 8, "all turns and mirrors of it"
    still = pool_of(config, maps, turned=False).give(indices)
    assert {still.maps_BHW[row].tobytes() for row in np.flatnonzero(oil == 12)} == {maps[3].tobytes()}


def test_what_is_given_says_how_to_draw_and_to_label() -> None:
    config = RenderConfig(others=1.0, label="image", guidance=2.0)
    given = pool_of(config, maps_of(9)).give(np.arange(3)).rows(np.array([2, 0]))
    assert (given.labels, given.guidance, len(given.maps_BHW)) == (False, 2.0, 2)
    plain = pool_of(RenderConfig(others=1.0), maps_of(9)).give(np.arange(3))
    assert (plain.labels, plain.guidance) == (True, 1.0)


def test_a_quota_that_no_map_can_meet_is_refused() -> None:
    oil = RenderConfig(quotas={"oil spill": 0.5}, contains_px=16)
    with pytest.raises(ConfigError, match=r"asks for oil spill, and none of 2 label maps has 16 pixels .*most is 15"):
        pool_of(oil, maps_of(3, 15))
    with pytest.raises(ConfigError, match=r"render\.quotas names slick; expected some of the classes sea surface"):
        pool_of(RenderConfig(quotas={"slick": 0.5}), maps_of(20))
    nothing = np.full((2, 8, 8), IGNORE, np.uint8)
    with pytest.raises(DataError, match="none of 2 label maps has a labelled pixel"):
        pool_of(oil, nothing)
    some = pool_of(oil, np.concatenate([nothing, maps_of(20)]))
    assert len(some.maps) == 1
    assert some.descriptors is not None
    assert some.descriptors.tolist() == [[6.0, 7.0, 8.0]], "still that of its own image"
    with pytest.raises(DataError, match="expected square ones"):
        pool_of(oil, np.zeros((1, 8, 4), np.uint8))


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"quotas": {"oil spill": 0.7, "ship": 0.4}}, "sum to 1 at the most, not 1.1"),
        ({"quotas": {"oil spill": 0.7}, "others": 0.5}, "sum to 1 at the most, not 1.2"),
        ({"quotas": {"oil spill": 0.0}}, "shares above 0, up to 1"),
        ({"maps": "scenes"}, "'masks', 'labelled' or 'both'"),
    ],
)
def test_shares_that_cannot_be_are_refused(settings: dict[str, object], what: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(what)):
        load(RenderConfig, settings)


def test_shares_in_tenths_may_fill_the_whole() -> None:
    assert RenderConfig(quotas={"oil spill": 0.7, "ship": 0.2}, others=0.1).renders
    kinds = kinds_of((0.7, 0.2, 0.1), 0, range(1000))
    assert (kinds == 3).sum() <= 1, "but for rounding of 0.7 + 0.2 + 0.1 nobody is left over"
    assert not RenderConfig().renders


def test_of_too_many_maps_each_kind_keeps_its_own() -> None:
    maps = maps_of(*[0] * 300, *range(5, 15))
    maps[:300, 0, 0] = np.arange(300) % 2 * 2
    config = RenderConfig(quotas={"oil spill": 0.4}, others=0.3, most_maps=4)
    pool = pool_of(config, maps)
    oil, others = (pool.maps[rows] for rows in pool.kinds)
    assert len(oil) == len(others) == 4
    assert ((oil == 1).sum(axis=(1, 2)) >= 4).all(), "though they are ten of hundreds"
    assert len(pool.maps) <= 8
    piecewise = pool_of(config, maps, pieces=(1, 150, 302))
    assert np.array_equal(piecewise.maps, pool.maps), "whatever pieces they come in"
    assert np.array_equal(piecewise.give(np.arange(50)).maps_BHW, pool.give(np.arange(50)).maps_BHW)
    assert not np.array_equal(pool_of(config, maps, seed=1).maps, pool.maps)


def test_the_order_of_quotas_changes_nothing() -> None:
    one = load(RenderConfig, {"quotas": {"sea surface": 0.3, "oil spill": 0.4}, "contains_px": 1})
    other = load(RenderConfig, {"quotas": {"oil spill": 0.4, "sea surface": 0.3}, "contains_px": 1})
    assert list(one.dump()["quotas"]) == list(other.dump()["quotas"]), "nor does JSON with sorted keys"
    maps = maps_of(*range(60))
    given, same = (pool_of(config, maps).give(np.arange(80)).maps_BHW for config in (one, other))
    assert np.array_equal(given, same)


def test_maps_and_descriptors_are_checked() -> None:
    maps = np.zeros((2, 8, 8), np.uint8)
    Given(maps, np.zeros((2, 6), np.float32)).check(2, 2, 2)
    for wrong, what in (
        (Given(maps[0]), "expected uint8 (2, H, W)"),
        (Given(maps + 3), "label maps hold [3]; expected classes 0 to 1, or 255"),
        (Given(maps, np.zeros((2, 3), np.float32)), "descriptors are float32 (2, 3); expected float32 (2, 6)"),
    ):
        with pytest.raises(DataError, match=re.escape(what)):
            wrong.check(2, 2, 2)
