"""Measures of likeness: real-like sets pass, and each fault is seen by the measures that it concerns."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import binary_erosion, gaussian_filter
from scipy.stats import wasserstein_distance

from dakter.errors import DataError
from dakter.evaluate.bootstrap import Resampling
from dakter.evaluate.distances import polynomial_kernel
from dakter.evaluate.likeness import (
    MEASURES,
    Likeness,
    Statistics,
    compare,
    copies,
    unbiased_mmd2,
)
from dakter.evaluate.speckle import histogram, histogram_distance, power_spectrum, spectrum_distance_db, to_gray
from dakter.schema import IGNORE

SIZE, COUNT = 48, 60
DRAWS = Resampling(300, 0, 0.9)
Set = tuple[np.ndarray, np.ndarray]


def scenes(count: int, seed: int) -> Set:
    """Speckled sea with up to three dark ellipses: uint8 images (N, 1, S, S) and class maps (N, S, S)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIZE, :SIZE]
    images, labels = np.zeros((count, 1, SIZE, SIZE), np.uint8), np.zeros((count, SIZE, SIZE), np.uint8)
    for image, label in zip(images, labels, strict=True):
        sea = 100 * (1 + 0.1 * gaussian_filter(rng.normal(size=(SIZE, SIZE)), 6) * 20)
        for _ in range(rng.integers(1, 4)):
            middle_y, middle_x, angle = *rng.uniform(8, SIZE - 8, 2), rng.uniform(0, np.pi)
            long, short = rng.uniform(6, 14), rng.uniform(3, 6)
            along = (x - middle_x) * np.cos(angle) + (y - middle_y) * np.sin(angle)
            across = (y - middle_y) * np.cos(angle) - (x - middle_x) * np.sin(angle)
            label[(along / long) ** 2 + (across / short) ** 2 < 1] = 1
        sea[label == 1] *= rng.uniform(0.35, 0.5)
        image[0] = (sea * rng.gamma(12, 1 / 12, sea.shape)).clip(0, 255)
    return images, labels


def features(images: np.ndarray) -> np.ndarray:
    """Of a network that was never trained: random 5 x 5 filters, rectified, mean over places; (N, 24)."""
    filters = np.random.default_rng(7).normal(size=(24, 5, 5))
    filters -= filters.mean(axis=(1, 2), keepdims=True)
    places = np.lib.stride_tricks.sliding_window_view(images[:, 0] / 255.0, (5, 5), axis=(1, 2))[:, ::3, ::3]
    return np.maximum(np.einsum("nhwij,fij->nhwf", places, filters), 0).mean(axis=(1, 2))


def measured(pair: Set) -> Statistics:
    return Statistics.of(*pair, 2, features(pair[0]))


@pytest.fixture(scope="module")
def real() -> list[Set]:
    images, labels = scenes(33 * COUNT, 0)
    return [(images[i : i + COUNT], labels[i : i + COUNT]) for i in range(0, len(images), COUNT)]


@pytest.fixture(scope="module")
def statistics(real: list[Set]) -> list[Statistics]:
    return [measured(pair) for pair in real]


def judged(generated: list[Set], statistics: list[Statistics]) -> dict[str, Likeness]:
    return compare([measured(pair) for pair in generated], statistics[1:4], statistics[0], DRAWS)


def failed(found: dict[str, Likeness]) -> set[str]:
    return {name for name, likeness in found.items() if not likeness.within}


def test_further_real_images_are_as_near_as_training_images(statistics: list[Statistics]) -> None:
    found = compare(statistics[17:], statistics[1:17], statistics[0], DRAWS)
    assert tuple(found) == MEASURES
    for name, likeness in found.items():
        assert likeness.ratio == pytest.approx(1, abs=0.3), name
        assert likeness.ratio < likeness.upper
    assert not failed(found)


def test_a_blurred_set_fails_in_spectrum_looks_and_kernel(real: list[Set], statistics: list[Statistics]) -> None:
    found = judged([(gaussian_filter(x, (0, 0, 0.8, 0.8)), y) for x, y in real[4:7]], statistics)
    assert {"spectrum", "looks", "kernel"} <= failed(found)
    as_they_are = judged(real[4:7], statistics)
    for name in ("class_shares", "part_area", "part_elongation", "num_parts"):
        assert found[name] == as_they_are[name]


def test_brighter_pixels_fail_in_the_histogram(real: list[Set], statistics: list[Statistics]) -> None:
    brighter = [((x.astype(int) + 25).clip(0, 255).astype(np.uint8), y) for x, y in real[4:7]]
    found = judged(brighter, statistics)
    assert "histogram" in failed(found)
    assert found["spectrum"].ratio == pytest.approx(judged(real[4:7], statistics)["spectrum"].ratio, rel=0.1)
    assert found["histogram"].generated == pytest.approx(25 / 255, abs=0.01)


def test_eroded_labels_fail_in_shares_and_areas(real: list[Set], statistics: list[Statistics]) -> None:
    eroded = [(x, np.stack([binary_erosion(m, iterations=2) for m in y]).astype(np.uint8)) for x, y in real[4:7]]
    found = judged(eroded, statistics)
    assert {"class_shares", "part_area"} <= failed(found)
    as_they_are = judged(real[4:7], statistics)
    for name in ("histogram", "spectrum", "kernel"):
        assert found[name] == as_they_are[name]


def test_specks_fail_in_the_number_of_parts_and_slicks_without_damping_in_damping(
    real: list[Set], statistics: list[Statistics]
) -> None:
    rng = np.random.default_rng(3)
    specks = [(x, (y | (rng.random(y.shape) < 0.004)).astype(np.uint8)) for x, y in real[4:7]]
    assert {"num_parts", "part_area"} <= failed(judged(specks, statistics))
    moved = [(x, np.roll(y, SIZE // 2, axis=(1, 2))) for x, y in real[4:7]]
    assert "damping" in failed(judged(moved, statistics))


def test_a_class_that_is_not_generated_fails_and_one_that_real_images_lack_is_not_measured(
    real: list[Set], statistics: list[Statistics]
) -> None:
    empty = [(x, np.zeros_like(y)) for x, y in real[4:5]]
    found = judged(empty, statistics)
    assert found["part_area"].ratio == found["damping"].upper == float("inf")
    assert {"part_area", "damping", "num_parts"} <= failed(found)
    images, labels = real[0]
    nothing = [Statistics.of(images[i::4], np.full_like(labels[i::4], IGNORE), 2) for i in range(3)]
    found = compare(nothing[:1], nothing[1:2], nothing[2], DRAWS)
    assert "kernel" not in found
    assert np.isnan([found[name].ratio for name in ("looks", "damping", "class_shares", "part_area")]).all()
    assert not found["looks"].within
    told = json.loads(json.dumps(found["looks"].to_json(), allow_nan=False))
    assert told == {"generated": None, "train": None, "ratio": None, "upper": None, "within": False}


def test_distances_are_those_of_the_plain_definitions(real: list[Set], statistics: list[Statistics]) -> None:
    found = compare(statistics[4:5], statistics[1:2], statistics[0], DRAWS)
    grays = [to_gray(real[i][0]) for i in (4, 0)]
    assert found["histogram"].generated == pytest.approx(histogram_distance(*(histogram(g) for g in grays)))
    assert found["spectrum"].generated == pytest.approx(spectrum_distance_db(*(power_spectrum(g) for g in grays)))
    for name, rel in (("num_parts", 1e-9), ("part_area", 1e-9), ("looks", 0.05)):
        generated, train, held_out = (statistics[i].pooled[name][0].values for i in (4, 1, 0))
        far = wasserstein_distance(generated, held_out) / np.concatenate([held_out, train]).std()
        assert found[name].generated == pytest.approx(far, rel=rel), name


def test_the_kernel_estimate_is_unbiased_and_told_with_the_spread_of_real_sets() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 3)), rng.normal(size=(2, 3))
    pair = _with_features([x, y, y])
    scale = np.sqrt(np.mean(np.concatenate([y, y]) ** 2))
    within = [polynomial_kernel(one / scale, one / scale)[0, 1] for one in (x, y)]
    across = polynomial_kernel(x / scale, y / scale).mean()
    found = unbiased_mmd2([pair[0]], [pair[1]], pair[2])
    assert found is not None
    assert found[0] == pytest.approx(sum(within) - 2 * across)
    # Over many pairs of sets of one kind the mean is about 0 and as many are negative; what is divided is not.
    sets = _with_features(list(rng.normal(size=(60, 20, 4))))
    estimates = [unbiased_mmd2([a], [b], c) for a, b, c in zip(sets[::3], sets[1::3], sets[2::3], strict=True)]
    values = np.array([value for pair_of in estimates if pair_of for value in pair_of])
    assert abs(values.mean()) < 3 * values.std() / np.sqrt(len(values))
    assert 0.2 < (values < 0).mean() < 0.8
    assert compare(sets[20:30], sets[10:20], sets[0], DRAWS)["kernel"].ratio == pytest.approx(1, abs=0.15)


def _with_features(sets: list[np.ndarray]) -> list[Statistics]:
    count = len(sets[0])
    plain = Statistics.of(np.full((count, 1, 8, 8), 9, np.uint8), np.zeros((count, 8, 8), np.uint8), 2)
    return [replace(plain, features=one) for one in sets]


def test_draws_are_those_of_the_seed(statistics: list[Statistics]) -> None:
    def bounds(seed: int) -> list[float]:
        found = compare(statistics[4:5], statistics[1:2], statistics[0], Resampling(50, seed, 0.9))
        return [likeness.upper for likeness in found.values()]

    assert bounds(0) == bounds(0)
    assert bounds(0) != bounds(1)


def test_other_numbers_of_images_are_refused(real: list[Set], statistics: list[Statistics]) -> None:
    fewer = Statistics.of(real[4][0][:-1], real[4][1][:-1], 2, features(real[4][0][:-1]))
    with pytest.raises(DataError, match=r"sets of 59, 60 images; expected equal numbers"):
        compare([fewer], statistics[1:2], statistics[0], DRAWS)
    with pytest.raises(DataError, match="1 generated and 0 training sets"):
        compare(statistics[4:5], [], statistics[0], DRAWS)
    with pytest.raises(DataError, match="features"):
        compare([replace(statistics[4], features=None)], statistics[1:2], statistics[0], DRAWS)
    with pytest.raises(DataError, match="at least two images"):
        Statistics.of(real[0][0][:1], real[0][1][:1], 2)


def test_copies_are_found(real: list[Set]) -> None:
    train, held_out, fresh = real[1][0], real[0][0], real[4][0]
    found = copies(fresh, held_out, train, DRAWS)
    assert found.within
    assert found.share <= 0.05
    copied = np.concatenate([fresh[10:], train[:10, :, ::-1]])
    found = copies(copied, held_out, train, DRAWS)
    assert found.share >= 10 / 60
    assert found.low > 0.05
    assert not found.within
    assert found == copies(copied, held_out, train, DRAWS)
    json.dumps(found.to_json(), allow_nan=False)
