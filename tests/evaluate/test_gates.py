"""Every rule turns away a sample that was made to break it, and keeps those that are like real ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from dakter.errors import ConfigError, DataError
from dakter.evaluate import copies
from dakter.evaluate.copies import first_alike, nearest, thumbnails
from dakter.evaluate.curation import QUOTAS, Curation, curate, failing_val
from dakter.evaluate.gates import RULES, CurateConfig, Limit, limits
from dakter.evaluate.measures import TEXTURE, Gauge, Measured, agreement, rule_of
from dakter.schema import IGNORE

SIZE, NAMES, OFF = 48, ("sea surface", "oil spill"), dict.fromkeys(RULES)
ALL = dict.fromkeys(RULES, 0.0)
Pairs = tuple[np.ndarray, np.ndarray]


def scenes(count: int, seed: int) -> Pairs:
    """Dark disks (oil, 5 dB down) on an uneven sea under gamma speckle of 8 looks."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIZE, :SIZE]
    labels = np.zeros((count, SIZE, SIZE), np.uint8)
    for label in labels:
        row, column, radius = (*rng.uniform(10, SIZE - 10, 2), rng.uniform(6, 10))
        label[np.hypot(y - row, x - column) < radius] = 1
    uneven = gaussian_filter(rng.normal(size=(count, SIZE, SIZE)), (0, 8, 8))
    level = 90 * rng.uniform(0.9, 1.1, (count, 1, 1)) * (1 + 5 * uneven) * np.where(labels == 1, 0.32, 1)
    images = level * rng.gamma(8, 1 / 8, level.shape)
    return np.clip(images, 0, 255).astype(np.uint8)[:, None], labels


def by_darkness(images: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """A second opinion: what is clearly darker than the image is oil."""
    smooth = gaussian_filter(images[:, 0].astype(np.float32), (0, 2, 2))
    return (smooth < 0.6 * np.median(smooth, axis=(1, 2), keepdims=True)).astype(np.uint8)


TRAIN, VAL = scenes(40, 1), scenes(16, 2)
ORDINARY = (VAL[0][:8], VAL[1][:8])


def _smoothed(image: np.ndarray, label: np.ndarray) -> Pairs:
    return gaussian_filter(image, (0, 1.5, 1.5)), label


PLANTED: dict[str, Callable[[np.ndarray, np.ndarray], Pairs]] = {
    "mean": lambda image, label: (np.clip(image * 1.8, 0, 255).astype(np.uint8), label),
    "spread": lambda image, label: ((80 + 0.1 * image).astype(np.uint8), label),
    "looks": _smoothed,
    "spectrum": _smoothed,
    "damping": lambda image, label: (np.where(label == 1, image * 3, image).astype(np.uint8), label),
    "shares": lambda image, label: (image, np.ones_like(label)),
    "copies": lambda image, label: (np.rot90(TRAIN[0][5], 1, (1, 2)) // 2 + 20, label),
    "agreement": lambda image, label: (image, np.roll(label, SIZE // 2, 0)),
    "duplicates": lambda image, label: (ORDINARY[0][3][:, ::-1], ORDINARY[1][3][::-1]),
}


def decide(config: CurateConfig, samples: Pairs) -> Curation:
    gauge = Gauge.of(TRAIN[0], NAMES, ("vv",), by_darkness)
    measured = gauge.measure(*samples, np.arange(len(samples[0])))
    val = gauge.measure(*VAL, np.arange(16)).values
    bounds = limits(config, gauge.texture(*TRAIN), val, num_train=40, num_samples=len(samples[0]))
    return curate(config, measured, bounds, np.arange(100, 100 + len(samples[0])), NAMES)


def with_planted(*rules: str) -> Pairs:
    pairs = [PLANTED[rule](VAL[0][9], VAL[1][9]) for rule in rules]
    images, labels = (np.stack([pair[part] for pair in pairs]) for part in (0, 1))
    return np.concatenate([ORDINARY[0], images]), np.concatenate([ORDINARY[1], labels])


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_turns_away_what_breaks_it_and_keeps_the_ordinary(rule: str) -> None:
    samples = with_planted(rule)
    found = decide(CurateConfig.model_validate({**OFF, rule: 0.0}), samples)
    assert found.to_json(NAMES)["indices"] == list(range(100, 108))
    assert found.judgement.counts() == {rule: {"fails": 1, "alone": 1, "first": 1}}
    assert found.judgement.why(rule, 8).startswith("repeats" if rule == "duplicates" else rule)
    kept = decide(CurateConfig.model_validate(OFF), samples)
    assert kept.accepted.all()
    assert kept.judgement.limits == {}


def test_all_rules_together_count_every_sample_once() -> None:
    found = decide(CurateConfig.model_validate(ALL), with_planted(*RULES))
    assert found.accepted[:8].all()
    assert not found.accepted[8:].any()
    document = found.to_json(NAMES)
    assert document["num_samples"] == document["num_accepted"] + sum(
        row["first"] for row in document["counts"].values()
    )
    counts = document["counts"]
    assert list(counts) == [*RULES, QUOTAS]
    assert counts["spectrum"]["fails"] > counts["spectrum"]["first"], "what is too smooth fails looks first"
    assert counts["duplicates"] == {"fails": 1, "alone": 1, "first": 1}
    assert all(row["alone"] <= row["first"] <= row["fails"] for row in counts.values())


def test_limits_are_those_of_real_images() -> None:
    config = CurateConfig.model_validate({**OFF, "mean": 0.1, "copies": 0.1})
    gauge = Gauge.of(TRAIN[0], NAMES, ("vv",))
    train, val = gauge.texture(*TRAIN), gauge.measure(*VAL, np.arange(16)).values
    found = limits(config, train, val, num_train=40, num_samples=1000)
    real = np.concatenate([train["mean/"], val["mean/"]])
    low, high = found["mean/"].low, found["mean/"].high
    assert low is not None
    assert high is not None
    assert (real < low).mean() == pytest.approx(0.1, abs=1 / 56)
    assert (real > high).mean() == pytest.approx(0.1, abs=1 / 56)
    assert real.min() < low < high < real.max()
    assert found["copies/"].low is None
    assert (val["copies/"] > found["copies/"].high).sum() == 1  # of 16 val images; train has no part in it
    assert found["copies/"].num_real == 16
    beyond = failing_val(config, gauge.measure(*VAL, np.arange(16)), found)
    assert beyond["copies"] == 1 / 16
    assert max(beyond["mean"], beyond["copies"]) <= beyond["any"] <= beyond["mean"] + beyond["copies"]


def test_more_samples_may_resemble_each_other_more() -> None:
    config = CurateConfig.model_validate({**OFF, "duplicates": 0.3})
    val = {"copies/": np.linspace(0, 1, 101)}
    high = {n: limits(config, {}, val, num_train=100, num_samples=n)["duplicates/"].high for n in (2, 101, 201, 10**6)}
    assert list(high.values()) == pytest.approx([0.7, 0.7, 0.85, 1.0])


def test_what_cannot_be_told_passes_and_an_empty_image_does_not() -> None:
    gauge = Gauge.of(TRAIN[0], NAMES, ("vv",))
    no_sea = gauge.measure(VAL[0][:1], np.full_like(VAL[1][:1], IGNORE), np.arange(1))
    assert np.isnan([no_sea.values["looks/"][0], no_sea.values["damping/oil spill"][0]]).all()
    assert no_sea.pixels.tolist() == [[0, 0]]
    empty = (np.concatenate([ORDINARY[0], np.full((1, 1, SIZE, SIZE), 80, np.uint8)]), np.repeat(VAL[1][:1], 9, axis=0))
    found = decide(CurateConfig.model_validate({**OFF, "spectrum": 0.0}), empty)
    assert found.rejected_by("spectrum").tolist() == [8]
    assert not Limit(None, None, 0).broken_by(np.array([np.nan, np.inf, -np.inf])).any()
    assert Limit(0.0, 1.0, 3).broken_by(np.array([np.nan, 0.0, 1.0, 1.1, -0.1])).tolist() == [False] * 3 + [True] * 2


def test_each_band_is_asked() -> None:
    images = np.concatenate([TRAIN[0], TRAIN[0][::-1]], axis=1)
    gauge = Gauge.of(images, NAMES, ("vv", "vh"))
    values = gauge.texture(images, TRAIN[1])
    assert {"looks/vv", "looks/vh", "damping/oil spill vh", "shares/oil spill"} <= set(values)
    assert {rule_of(measure) for measure in values} == set(TEXTURE)
    assert values["mean/vh"].tolist() == values["mean/vv"][::-1].tolist()


def test_agreement_counts_a_small_slick_as_much_as_the_sea_if_asked() -> None:
    label = np.zeros((1, 10, 10), np.uint8)
    label[0, 0, :4] = 1
    label[0, 9] = IGNORE
    missed = np.zeros((1, 10, 10), np.uint8)
    assert agreement(label, missed, 2, "pixels") == pytest.approx(86 / 90)
    assert agreement(label, missed, 2, "miou") == pytest.approx(86 / 90 / 2)
    assert np.isnan(agreement(np.full_like(label, IGNORE), missed, 2, "pixels")).all()


def test_measures_survive_their_file() -> None:
    gauge = Gauge.of(TRAIN[0], NAMES, ("vv",), by_darkness)
    one = gauge.measure(*ORDINARY, np.arange(8))
    again = Measured.from_bytes(one.to_bytes())
    assert set(again.values) == set(one.values)
    for a, b in [(again.values[name], one.values[name]) for name in one.values] + [
        (getattr(again, name), getattr(one, name)) for name in ("pixels", "nearest", "small")
    ]:
        assert np.array_equal(a, b, equal_nan=True)


def test_quotas_come_after_the_rules_and_what_is_left_must_do() -> None:
    images, labels = VAL[0][:8], VAL[1][:8].copy()
    labels[:6] = 0
    config = CurateConfig.model_validate({**OFF, "quotas": {"oil spill": 0.5}, "seed": 3})
    found = decide(config, (images, labels))
    assert found.accepted[6:].all()
    assert found.accepted.sum() == 4
    document = found.to_json(NAMES)
    assert document["counts"] == {QUOTAS: {"fails": 4, "alone": 4, "first": 4}}
    assert document["share_containing"]["oil spill"] == {"corpus": 0.25, "passed": 0.25, "accepted": 0.5}
    with pytest.raises(DataError, match="4 of 8 samples are left by the quotas; expected at least 5"):
        decide(config.model_copy(update={"min_samples": 5}), (images, labels))
    with pytest.raises(DataError, match=r"0 of 8 samples passed the rules \(turned away by spread 8\)"):
        decide(CurateConfig.model_validate({**OFF, "spread": 0.0}), (images // 8 + 80, labels))
    with pytest.raises(ConfigError, match=r"curate\.quotas names oil; expected some of the classes sea surface, oil"):
        decide(CurateConfig.model_validate({**OFF, "quotas": {"oil": 0.5}}), (images, labels))
    with pytest.raises(ValueError, match="shares above 0, up to 1"):
        CurateConfig.model_validate({"quotas": {"oil spill": 1.5}})


def test_repeats_are_those_of_comparing_all_with_all(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    base, _ = scenes(12, 7)
    images = base[rng.integers(0, 12, 50)] // 2 + rng.integers(0, 100, (50, 1, SIZE, SIZE), dtype=np.uint8)
    images = np.stack([np.rot90(image, k, (1, 2)) for image, k in zip(images, rng.integers(0, 4, 50), strict=True)])
    images[17] = 9  # empty images resemble nothing, not even each other
    images[31] = 9
    small = thumbnails(images)
    correlation = np.array(
        [[nearest(a[None], b[None]).correlation[0] for b in small[:i]] + [0.0] * (50 - i) for i, a in enumerate(small)]
    )
    limit = 0.8
    expected: list[int] = []
    for i in range(50):
        alike = [j for j in range(i) if expected[j] < 0 and correlation[i, j] > limit]
        expected.append(alike[0] if alike else -1)
    assert 20 < sum(found < 0 for found in expected) < 45
    assert first_alike(small, limit).tolist() == expected
    for name, value in (("_ROWS", 7), ("_COLUMNS", 5), ("_PAIRS", 3)):
        monkeypatch.setattr(copies, name, value)
    assert first_alike(small, limit).tolist() == expected
    assert first_alike(small[:0], limit).tolist() == []
