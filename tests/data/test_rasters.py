"""What files say of their own numbers: palettes, transparency, no-data values, bits a channel, compression."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image
from tiny_datasets import half, rgb, texture

from dakter.data.images import decode_image, decode_label, decode_threshold
from dakter.data.rasters import read
from dakter.errors import DataError
from dakter.schema import OSD, SOS, ClassTable

U8, U16 = np.dtype(np.uint8), np.dtype(np.uint16)
BYTE, DECIBELS = (0.0, 255.0), (-35.0, 0.0)
SEA, OIL = ([int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in SOS.colours)


def png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "png")
    return out.getvalue()


def tiff(pixels: np.ndarray, **settings: Any) -> bytes:
    out = io.BytesIO()
    tifffile.imwrite(out, pixels, **settings)
    return out.getvalue()


def palette_mask(indices: np.ndarray, *colours: list[int]) -> bytes:
    image = Image.fromarray(indices, "P")
    image.putpalette([value for colour in colours for value in colour])
    return png(image)


def test_a_palette_of_the_classes_colours_counts_whatever_its_order() -> None:
    label = half(value=1)
    np.testing.assert_array_equal(decode_label(palette_mask(label, SEA, OIL), SOS), label)
    np.testing.assert_array_equal(decode_label(palette_mask(1 - label, OIL, SEA), SOS), label)
    quantised = Image.fromarray(np.array([SEA, OIL], np.uint8)[label]).quantize(2)
    np.testing.assert_array_equal(decode_label(png(quantised), SOS), label)
    np.testing.assert_array_equal(decode_label(palette_mask(np.zeros_like(label), OIL, SEA), SOS), label * 0 + 1)


def test_what_a_palette_means_does_not_hang_on_which_indices_a_file_uses() -> None:
    ones, both = np.ones((4, 4), np.uint8), np.array([[0, 1]], np.uint8)
    greys = [[level] * 3 for level in range(256)]
    np.testing.assert_array_equal(decode_label(palette_mask(ones, *greys), SOS), ones)
    np.testing.assert_array_equal(decode_label(palette_mask(ones, OIL, SEA), SOS), ones * 0)
    black_and_white = ClassTable("b", ("sea", "oil"), ("#000000", "#ffffff"))
    some = np.array([[0, 255]], np.uint8)
    np.testing.assert_array_equal(decode_label(palette_mask(some, *greys), black_and_white), some)
    reversed_palette = [OIL, SEA, *[[9, 200, 9]] * 254]
    partly = np.array([[0, 1, 255]], np.uint8)
    np.testing.assert_array_equal(decode_label(palette_mask(both, *reversed_palette), SOS), [[1, 0]])
    np.testing.assert_array_equal(decode_label(palette_mask(partly, *reversed_palette), SOS), [[1, 0, 255]])


def test_palettes_of_16_bits_are_read_as_those_of_8() -> None:
    colormap = np.zeros((3, 65536), np.uint16)
    colormap[:, 300], colormap[:, 301] = np.array(OIL) * 257, np.array(SEA) * 257
    indices = 300 + half(value=1).astype(np.uint16)
    mask = tiff(indices, photometric="palette", colormap=colormap)
    np.testing.assert_array_equal(decode_label(mask, SOS), 1 - half(value=1))


def test_colours_of_other_depths_are_not_taken_for_black() -> None:
    oil = np.broadcast_to(np.array(OIL, np.uint16) * 257, (8, 8, 3))
    for pixels in (oil, (oil / 65535).astype(np.float32)):
        with pytest.raises(DataError, match="8 bits a channel"):
            decode_label(tiff(pixels, photometric="rgb"), SOS)


@pytest.mark.parametrize("colours", [([0, 0, 0], [1, 1, 1]), ([0, 0, 0], [128, 0, 0]), ([9, 200, 9], OIL)])
def test_indices_of_any_other_palette_are_class_numbers(colours: tuple[list[int], list[int]]) -> None:
    label = half(value=1)
    np.testing.assert_array_equal(decode_label(palette_mask(label, *colours), SOS), label)


def test_a_palette_image_is_what_a_viewer_shows() -> None:
    grey = texture(1) // 8 * 8
    reversed_palette = [value for level in range(255, -1, -1) for value in (level, level, level)]
    image = Image.fromarray(255 - grey, "P")
    image.putpalette(reversed_palette)
    np.testing.assert_array_equal(decode_image(png(image), 1, BYTE, U8), grey[None])
    colormap = np.tile(np.arange(255, -1, -1, dtype=np.uint16) * 257, (3, 1))
    for factor in (1, 257):  # some write 8 bits where the standard has 16
        table = colormap // 257 * np.uint16(factor)
        shown = decode_image(tiff(255 - grey, photometric="palette", colormap=table), 1, BYTE, U8)
        np.testing.assert_array_equal(shown, grey[None])


def test_a_black_and_white_palette_mask_is_cut_by_what_it_shows() -> None:
    mask = palette_mask(half(value=1), [255, 255, 255], [0, 0, 0])
    np.testing.assert_array_equal(decode_threshold(mask), 1 - half(value=1))


def test_class_numbers_in_three_equal_channels_are_not_taken_for_black() -> None:
    with pytest.raises(DataError, match="class numbers in three equal channels"):
        decode_label(png(Image.fromarray(rgb(half(value=1)))), SOS)
    with pytest.raises(DataError, match="class numbers in three equal channels"):
        decode_label(png(Image.fromarray(rgb(np.array([[0, 4, 255]], np.uint8)))), OSD)
    np.testing.assert_array_equal(decode_label(png(Image.fromarray(rgb(half() * 0))), SOS), half() * 0)


@pytest.mark.parametrize("compression", ["lzw", "zstd", "deflate", "packbits"])
def test_compressed_tiffs_are_read(compression: str) -> None:
    floats = np.linspace(-30, -5, 1024, dtype=np.float32).reshape(32, 32)
    plain = decode_image(tiff(floats), 1, DECIBELS, U16)
    for settings in ({}, {"predictor": True}) if compression not in ("packbits",) else ({},):
        packed = decode_image(tiff(floats, compression=compression, **settings), 1, DECIBELS, U16)
        np.testing.assert_array_equal(packed, plain)


@pytest.mark.parametrize(
    ("fill", "tag", "reason"),
    [
        (-9999.0, "-9999", r"-9999, by its GDAL_NODATA tag no data, in 64 pixels \(6.2 %\)"),
        (-20.0, "-20", "by its GDAL_NODATA tag"),
        (-9999.0, None, "-9999, far outside the value range -35 to 0, in 64 pixels"),
        (3.4e38, None, "far outside the value range"),
        (9999.0, "none", "9999, far outside the value range -35 to 0, in 64 pixels"),
        (np.nan, "nan", "NaN or infinity in 64 pixels"),
    ],
)
def test_pixels_without_data_are_not_taken_for_the_darkest_sea(fill: float, tag: str | None, reason: str) -> None:
    image = np.full((32, 32), -18.0, np.float32)
    image[:2] = fill
    tags = [(42113, "s", 0, tag, True)] if tag else []
    with pytest.raises(DataError, match=reason):
        decode_image(tiff(image, extratags=tags), 1, DECIBELS, U16)


def test_a_no_data_tag_without_such_pixels_and_a_bright_ship_are_fine() -> None:
    image = np.full((32, 32), 0.02, np.float32)
    image[3, 3] = 90.0
    found = decode_image(tiff(image, extratags=[(42113, "s", 0, "-9999", True)]), 1, (0.0, 0.5), U16)
    assert (found[0, 0, 0], found[0, 3, 3]) == (2621, 65535)
    for tag in ("", "n/a", "-1.7976931348623157e+308"):
        again = decode_image(tiff(image, extratags=[(42113, "s", 0, tag, True)]), 1, (0.0, 0.5), U16)
        np.testing.assert_array_equal(again, found)


def test_images_in_other_units_are_told_so_and_not_called_empty() -> None:
    with pytest.raises(DataError, match="state the range of these images"):
        decode_image(tiff(texture(1).astype(np.float32) + 300), 1, (0.0, 0.01), U16)


def test_transparent_parts_are_no_data_and_alpha_is_no_band() -> None:
    grey = texture(1)
    image = Image.fromarray(np.dstack([rgb(grey), np.full_like(grey, 255)]))
    np.testing.assert_array_equal(decode_image(png(image), 1, BYTE, U8), grey[None])
    with_alpha = Image.merge("LA", (Image.fromarray(grey), Image.new("L", (32, 32), 255)))
    np.testing.assert_array_equal(decode_image(png(with_alpha), 1, BYTE, U8), grey[None])
    with pytest.raises(DataError, match="1 bands; expected 2"):
        decode_image(png(with_alpha), 2, BYTE, U8)
    image.putalpha(Image.fromarray(half()))
    with pytest.raises(DataError, match=r"transparency in 512 pixels \(50.0 %\)"):
        decode_image(png(image), 1, BYTE, U8)
    with pytest.raises(DataError, match="transparency in 512 pixels"):
        decode_image(tiff(np.asarray(image), photometric="rgb", extrasamples=["unassalpha"]), 1, BYTE, U8)


def test_a_png_of_16_bits_in_colour_is_refused_before_it_is_cut_to_8() -> None:
    rows = b"".join(b"\0" + bytes(6 * 4) for _ in range(4))
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n"
    for kind, body in chunks:
        data += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    with pytest.raises(DataError, match="16 bits a channel"):
        read(data)
    with pytest.raises(DataError, match="cannot be read"):
        read(data[:25])  # cut within the very header that is looked at


def test_bands_of_sigma0_are_no_grey_image_though_they_differ_by_little() -> None:
    bands = np.random.default_rng(0).uniform(0.0, 0.3, (32, 32, 3)).astype(np.float32)
    with pytest.raises(DataError, match="channels differ"):
        decode_image(tiff(bands), 1, (0.0, 0.5), U16)
    same = np.repeat(bands[..., :1], 3, 2)
    assert decode_image(tiff(same), 1, (0.0, 0.5), U16).shape == (1, 32, 32)


def test_what_is_no_image_is_told_in_words() -> None:
    with pytest.raises(DataError, match="no JPEG, PNG or TIFF"):
        read(b"%PDF-1.7 something else")
