"""Decoding files: every form that is promised, and a reason for every one that is refused."""

from __future__ import annotations

import io

import numpy as np
import pytest
import tifffile
from PIL import Image
from tiny_datasets import osd_colours, osd_label, rgb, texture

from dakter.data.images import decode_image, decode_label, decode_threshold
from dakter.errors import DataError
from dakter.schema import IGNORE, OSD, SOS

U8, U16 = np.dtype(np.uint8), np.dtype(np.uint16)
BYTE = (0.0, 255.0)


def encoded(pixels: np.ndarray, kind: str) -> bytes:
    out = io.BytesIO()
    if kind == "tif":
        tifffile.imwrite(out, pixels)
    else:
        Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


def test_grey_saved_as_rgb_is_one_band_bit_exact() -> None:
    grey = texture(1)
    np.testing.assert_array_equal(decode_image(encoded(rgb(grey), "png"), 1, BYTE, U8), grey[None])


def test_a_jpeg_is_read_as_its_grey_values() -> None:
    grey = texture(1)
    image = decode_image(encoded(rgb(grey), "jpeg"), 1, BYTE, U8)
    assert image.shape == (1, 32, 32)
    assert np.abs(image[0].astype(int) - grey).mean() < 4


def test_a_colour_image_is_refused() -> None:
    pixels = np.stack([texture(1), texture(2), texture(3)], -1)
    with pytest.raises(DataError, match="colour image"):
        decode_image(encoded(pixels, "png"), 1, BYTE, U8)


def test_float_decibels_span_the_stated_range() -> None:
    db = np.linspace(-40, 0, 64, dtype=np.float32).reshape(8, 8)
    image = decode_image(encoded(db, "tif"), 1, (-35.0, 0.0), U16)
    assert image.dtype == np.uint16
    assert (image.min(), image.max()) == (0, 65535)
    np.testing.assert_allclose(image[0] / 65535 * 35 - 35, np.clip(db, -35, 0), atol=35 / 65535)


def test_two_bands_are_read_first_or_last() -> None:
    bands = np.arange(2 * 8 * 9, dtype=np.uint16).reshape(2, 8, 9) * 400
    for pixels in (bands, np.moveaxis(bands, 0, -1)):
        np.testing.assert_array_equal(decode_image(encoded(pixels, "tif"), 2, (0.0, 65535.0), U16), bands)


def test_sixteen_bit_png_is_read() -> None:
    pixels = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    np.testing.assert_array_equal(decode_image(encoded(pixels, "png"), 1, (0.0, 65535.0), U16)[0], pixels)


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (np.full((8, 8), np.nan, np.float32), "NaN"),
        (np.full((8, 8), np.inf, np.float32), "infinity"),
        (np.full((8, 8), 0.01, np.float32), "outside the value range"),
        (np.zeros((8, 8, 2), np.float32), "2 bands; expected 1"),
    ],
)
def test_images_that_mean_something_else_are_refused(pixels: np.ndarray, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        decode_image(encoded(pixels, "tif"), 1, (-35.0, -1.0), U16)


@pytest.mark.parametrize("kind", ["jpeg", "png", "tif"])
def test_a_file_cut_short_is_refused(kind: str) -> None:
    data = encoded(texture(1), kind)
    with pytest.raises(DataError, match="cannot be read"):
        decode_image(data[: len(data) // 2], 1, BYTE, U8)


def test_an_empty_file_is_refused() -> None:
    with pytest.raises(DataError, match="0 bytes"):
        decode_image(b"", 1, BYTE, U8)


def test_a_grey_mask_is_cut_at_128() -> None:
    mask = np.array([[0, 127, 128, 255]], np.uint8)
    for pixels in (mask, rgb(mask)):
        np.testing.assert_array_equal(decode_threshold(encoded(pixels, "png")), [[0, 0, 1, 1]])


def test_a_mask_of_class_numbers_is_not_thresholded_away() -> None:
    with pytest.raises(DataError, match="class numbers"):
        decode_threshold(encoded(np.array([[0, 1]], np.uint8), "png"))


def test_class_numbers_are_taken_and_unknown_ones_named() -> None:
    label = np.array([[0, 4, IGNORE]], np.uint8)
    np.testing.assert_array_equal(decode_label(encoded(label, "png"), OSD), label)
    with pytest.raises(DataError, match=r"unknown label values 7; expected 0 to 4"):
        decode_label(encoded(np.array([[0, 7]], np.uint8), "png"), OSD)


def test_colours_are_decoded_and_edges_filled_from_neighbours() -> None:
    label = osd_label()
    found = decode_label(encoded(osd_colours(label), "png"), OSD)
    # Only the one anti-aliased column at each of the four edges may go to either side; no class is invented there.
    differs = found != label
    assert set(np.flatnonzero(differs.any(0))) <= set(np.flatnonzero(np.diff(label[0].astype(int))) + 1)
    for row in (0, 20):
        assert (np.diff(found[row].astype(int)) >= 0).all()


def test_half_way_from_sea_to_oil_is_not_read_as_land() -> None:
    pixels = np.zeros((6, 9, 3), np.uint8)
    pixels[:, 4] = (0, 128, 128)  # no further from land's (0, 153, 0) than from the sea
    pixels[:, 5:] = (0, 255, 255)
    assert set(np.unique(decode_label(encoded(pixels, "png"), OSD))) == {0, 1}


def test_an_unknown_colour_is_named() -> None:
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[4:28, 4:28] = (255, 0, 255)
    with pytest.raises(DataError, match="#ff00ff"):
        decode_label(encoded(pixels, "png"), OSD)
    with pytest.raises(DataError, match="#ff00ff"):
        decode_label(encoded(pixels[6:20, 6:20], "png"), SOS)
