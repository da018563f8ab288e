import time

import numpy as np
import pytest

from dakter.errors import ConfigError, DataError
from dakter.evaluate import bootstrap
from dakter.evaluate.bootstrap import Resampling, arm_difference, arm_estimate, holm, mean_iou, paired_difference, ratio
from dakter.metrics import miou

DRAWS = Resampling(num_resamples=400, seed=1, level=0.9)


def confusions(rng: np.random.Generator, num_images: int, accuracy: float, classes: int = 3) -> np.ndarray:
    """Images of 100 pixels: class shares vary an image, ``accuracy`` of each class right, the rest spread."""
    share = rng.dirichlet(np.full(classes, 2.0), size=num_images)
    right = np.full((classes, classes), (1 - accuracy) / (classes - 1))
    np.fill_diagonal(right, accuracy)
    return rng.multinomial(100, (share[:, :, None] * right).reshape(num_images, -1)).reshape(-1, classes, classes)


def test_identical_models_differ_by_exactly_nothing() -> None:
    a = confusions(np.random.default_rng(0), 20, 0.8)
    found = paired_difference(a, a, np.arange(20), statistic=miou, num_resamples=200, seed=0, level=0.95)
    assert (found.difference, found.low, found.high, found.p_value) == (0.0, 0.0, 0.0, 1.0)


def test_better_model_wins_and_the_order_of_arguments_is_the_sign() -> None:
    rng = np.random.default_rng(0)
    a, b = confusions(rng, 60, 0.9), confusions(rng, 60, 0.6)
    found = paired_difference(a, b, np.arange(60), statistic=miou, num_resamples=500, seed=0, level=0.95)
    back = paired_difference(b, a, np.arange(60), statistic=miou, num_resamples=500, seed=0, level=0.95)
    assert found.difference == pytest.approx(miou(a.sum(0)) - miou(b.sum(0)))
    assert 0 < found.low < found.difference < found.high
    assert found.p_value == pytest.approx(2 / 501)  # no draw at or below zero: the smallest p that 500 draws can tell
    assert back.low == pytest.approx(-found.high)


def test_batched_statistic_gives_the_same_draws() -> None:
    rng = np.random.default_rng(3)
    a, b, groups = confusions(rng, 30, 0.8), confusions(rng, 30, 0.7), np.arange(30) // 2
    one = paired_difference(a, b, groups, statistic=miou, num_resamples=300, seed=5, level=0.9)
    many = paired_difference(a, b, groups, statistic=mean_iou, num_resamples=300, seed=5, level=0.9, batched=True)
    assert many.low == pytest.approx(one.low)
    assert many.high == pytest.approx(one.high)
    assert many.difference == pytest.approx(one.difference)


def test_draws_are_those_of_resampling_whole_groups_by_hand() -> None:
    # Two groups, one sum each: draws can only be (2,0), (1,1), (0,2), so the mean is one of three values.
    sums = np.array([[[1.0, 1.0], [3.0, 1.0], [10.0, 1.0]]])  # (1 student, 3 images, sum and count)
    groups = np.array([7, 7, 9])
    counts = bootstrap._group_counts(groups, DRAWS)
    value, draws = bootstrap._scores(sums, groups, counts, ratio, True, DRAWS, "a")
    assert value == pytest.approx(14 / 3)
    assert {round(float(d), 6) for d in draws} == {2.0, round(14 / 3, 6), 10.0}
    assert (counts.sum(axis=1) == 2).all()


def test_near_duplicates_widen_the_interval() -> None:
    rng = np.random.default_rng(2)
    a, b = confusions(rng, 40, 0.8), confusions(rng, 40, 0.75)
    copies_a, copies_b = np.repeat(a, 9, axis=0), np.repeat(b, 9, axis=0)
    grouped = arm_difference(
        copies_a[None], copies_b[None], np.repeat(np.arange(40), 9), statistic=mean_iou, resampling=DRAWS, batched=True
    )
    single = arm_difference(a[None], b[None], np.arange(40), statistic=mean_iou, resampling=DRAWS, batched=True)
    blind = arm_difference(
        copies_a[None], copies_b[None], np.arange(360), statistic=mean_iou, resampling=DRAWS, batched=True
    )
    assert grouped.high - grouped.low == pytest.approx(single.high - single.low)  # copies add no evidence
    assert blind.high - blind.low < 0.5 * (grouped.high - grouped.low)


def test_class_absent_from_a_draw_is_left_out_of_its_mean() -> None:
    # Class 1 occurs in one image alone and both models miss it; where that image is not drawn, mIoU is that of class 0.
    a = np.zeros((2, 2, 2), dtype=np.int64)
    a[0] = [[10, 0], [0, 0]]
    a[1] = [[0, 0], [10, 0]]
    found = arm_estimate(a[None], np.arange(2), statistic=mean_iou, resampling=Resampling(500, 0, 0.99), batched=True)
    assert found.high == 1.0  # the first image twice
    assert found.low == 0.0  # the second twice: class 0 absent, class 1 missed
    assert found.mean == pytest.approx(0.25)  # (10/20 + 0/10) / 2


def test_undefined_everywhere_is_nan_without_a_warning() -> None:
    nothing = np.zeros((1, 4, 2, 2), dtype=np.int64)
    found = arm_difference(nothing, nothing, np.arange(4), statistic=mean_iou, resampling=DRAWS, batched=True)
    assert np.isnan([found.difference, found.low, found.high, found.p_value]).all()


def test_seeds_are_resampled() -> None:
    # Students that differ among themselves while images are all alike: all spread comes from seeds.
    good, poor = np.array([[9, 1], [1, 9]]), np.array([[6, 4], [4, 6]])
    arm = np.stack([np.broadcast_to(m, (10, 2, 2)) for m in (good, poor)])
    found = arm_estimate(arm, np.arange(10), statistic=mean_iou, resampling=DRAWS, batched=True)
    assert found.high - found.low > 0.2
    assert found.mean == pytest.approx((miou(good) + miou(poor)) / 2)
    weights = bootstrap._seed_weights(3, Resampling(20000, 0, 0.9), "a")
    assert weights.sum(axis=1) == pytest.approx(1.0)
    # Variance of a mean of 3 seeds estimated from themselves is s^2 / 3 with s^2 over (S-1).
    values = np.array([1.0, 2.0, 6.0])
    assert (weights @ values).var() == pytest.approx(values.var(ddof=1) / 3, rel=0.05)


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Grouped images with a shared group effect, paired models: 90 % intervals of 300 experiments."""
    truth, covered, experiments = 0.3, 0, 300
    for experiment in range(experiments):
        rng = np.random.default_rng(experiment)
        groups = np.repeat(np.arange(40), 3)
        shared = rng.normal(0, 1.0, 40)[groups]  # difficulty of the scene: common to both models
        effect = rng.normal(truth, 1.0, 40)[groups]  # gain, common to a scene's near-duplicates
        b = shared + rng.normal(0, 0.3, 120)
        a = b + effect + rng.normal(0, 0.3, 120)
        sums_a, sums_b = (np.stack([values, np.ones(120)], axis=1) for values in (a, b))
        found = paired_difference(
            sums_a, sums_b, groups, statistic=ratio, num_resamples=300, seed=experiment, level=0.9, batched=True
        )
        covered += found.low <= truth <= found.high
    # Standard error of the share is 1.7 %; the percentile interval is known to run a little short at 40 groups.
    assert 0.84 <= covered / experiments <= 0.95


def test_two_thousand_draws_of_a_thousand_images_take_under_a_second() -> None:
    rng = np.random.default_rng(0)
    a, b = (np.stack([confusions(rng, 1000, acc, classes=5) for _ in range(3)]) for acc in (0.8, 0.7))
    start = time.process_time()
    resampling = Resampling(2000, 0, 0.95)
    arm_difference(a, b, np.arange(1000), statistic=mean_iou, resampling=resampling, batched=True)
    assert time.process_time() - start < 1.0


def test_same_seed_same_interval() -> None:
    rng = np.random.default_rng(0)
    a, b = confusions(rng, 30, 0.8), confusions(rng, 30, 0.7)
    results = [
        paired_difference(a, b, np.arange(30), statistic=miou, num_resamples=100, seed=seed, level=0.9)
        for seed in (4, 4, 5)
    ]
    assert results[0] == results[1]
    assert results[0].low != results[2].low


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    kept = holm([float("nan"), 0.02, 0.03])
    assert np.isnan(kept[0])
    assert kept[1:] == pytest.approx([0.04, 0.04])


def test_wrong_shapes_and_settings_are_refused() -> None:
    a = confusions(np.random.default_rng(0), 5, 0.8)
    with pytest.raises(DataError, match=r"expected \(students, images"):
        paired_difference(a, a, np.arange(4), statistic=miou, num_resamples=10, seed=0, level=0.9)
    with pytest.raises(DataError, match="no test image"):
        paired_difference(a[:0], a[:0], np.arange(0), statistic=miou, num_resamples=10, seed=0, level=0.9)
    with pytest.raises(ConfigError, match="level between 0 and 1"):
        paired_difference(a, a, np.arange(5), statistic=miou, num_resamples=10, seed=0, level=95.0)
