import numpy as np
import pytest

from dakter.errors import DataError
from dakter.evaluate.speckle import (
    Texture,
    class_shares,
    damping_db,
    equivalent_looks,
    histogram,
    histogram_distance,
    power_spectrum,
    spectrum_distance_db,
    to_gray,
)
from dakter.schema import IGNORE


def speckle(looks: float, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).gamma(looks, 1 / looks, shape)


@pytest.mark.parametrize("looks", [1, 4, 16])
def test_looks_of_gamma_speckle_are_recovered(looks: int) -> None:
    gray = 0.1 * speckle(looks, (20, 64, 64))
    found = equivalent_looks(gray, np.zeros(gray.shape, np.uint8), patch_px=16)
    assert len(found) == 20 * 16
    assert np.median(found) == pytest.approx(looks, rel=0.1)


def test_only_patches_wholly_of_the_class_count() -> None:
    labels = np.zeros((1, 16, 20), np.uint8)
    labels[0, 3, 3] = 1  # spoils the first of four patches of 8 px; the last 4 columns make no patch
    assert len(equivalent_looks(speckle(4, labels.shape), labels)) == 3
    assert len(equivalent_looks(np.ones(labels.shape), labels)) == 0  # no variance, no looks


def test_histogram_distance_is_how_far_gray_moved() -> None:
    a, b = np.full((2, 4, 4), 0.25), np.full((2, 4, 4), 0.75)
    assert histogram(a).sum() == 1.0
    assert histogram_distance(histogram(a), histogram(b)) == pytest.approx(0.5)
    assert histogram_distance(histogram(a), histogram(a)) == 0.0


def test_spectrum_of_a_wave_is_a_peak_at_its_frequency() -> None:
    wave = np.sin(2 * np.pi * np.arange(64) * 10 / 64)
    spectrum = power_spectrum(np.broadcast_to(0.5 + 0.2 * wave, (3, 64, 64)))
    assert spectrum.shape == (32,)
    assert spectrum.sum() == pytest.approx(1.0)
    assert spectrum.argmax() == 9  # ring i covers i+1 cycles an image
    assert spectrum[8:12].sum() > 0.95


def test_spectrum_of_white_noise_is_flat_and_blurring_shows_in_db() -> None:
    noise = np.random.default_rng(0).normal(0.5, 0.1, (200, 32, 32))
    flat = power_spectrum(noise)
    assert flat[2:] == pytest.approx(np.full(14, flat[2:].mean()), rel=0.15)
    again = power_spectrum(np.random.default_rng(1).normal(0.3, 0.05, (200, 32, 32)))
    assert spectrum_distance_db(flat, again) < 0.5  # contrast and level do not matter
    blurred = (noise + np.roll(noise, 1, 1) + np.roll(noise, 1, 2)) / 3
    assert spectrum_distance_db(flat, power_spectrum(blurred)) > 2
    assert np.isnan(spectrum_distance_db(flat, power_spectrum(np.ones((1, 32, 32)))))


def test_damping_of_a_slick_three_db_darker() -> None:
    gray = np.full((2, 64, 64), 0.8)
    labels = np.zeros(gray.shape, np.uint8)
    labels[0, 20:40, 20:40] = 1
    gray[0, 20:40, 20:40] = 0.4
    gray[0, :, :5] = 0.1  # far from the slick: not its surroundings
    assert damping_db(gray, labels, 1) == pytest.approx([10 * np.log10(2)])  # the second image holds none
    labels[0][labels[0] == 0] = 2
    assert damping_db(gray, labels, 1).size == 0  # no sea around it


def test_shares_leave_unlabelled_pixels_out() -> None:
    assert class_shares(np.array([[[0, 0], [1, IGNORE]]], np.uint8), 3) == pytest.approx([2 / 3, 1 / 3, 0])


def test_texture_of_a_set() -> None:
    gray = (0.2 * speckle(4, (8, 32, 32))).clip(0, 1)
    texture = Texture.of(gray, np.zeros(gray.shape, np.uint8), 3)
    assert 2.5 < texture.looks < 6
    assert np.isnan(texture.damping_db).all()
    assert texture.shares.tolist() == [1, 0, 0]
    with pytest.raises(DataError, match="at least one image"):
        Texture.of(gray[:0], np.zeros((0, 32, 32), np.uint8), 3)


def test_gray_spans_the_integer_range() -> None:
    stored = np.array([0, 65535], np.uint16).reshape(1, 1, 1, 2)
    assert to_gray(stored).tolist() == [[[0.0, 1.0]]]
