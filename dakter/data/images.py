"""Decoding image and mask files (JPEG, PNG, TIFF) to arrays, each file judged by itself.

Every function takes the bytes of one file and raises DataError with the reason alone; who calls adds the file's name.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
import tifffile
from PIL import Image
from scipy.ndimage import distance_transform_edt

from dakter.errors import DataError
from dakter.schema import IGNORE, ClassTable

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")
LABEL_SUFFIXES = (".png", ".tif", ".tiff")  # lossless: JPEG would invent classes at edges

# Channels of a grey image stored as RGB differ by rounding alone; more on average means a colour image.
_GREY_TOLERANCE = 4.0
# Label colours: "near-exact" is within this of every channel; the rest is anti-aliasing, at most this far from a class.
_COLOUR_TOLERANCE = 24
_EDGE_PX = 4.0
# A float image with more than this share outside the stated range is in other units (dB against linear, say).
_MOST_OUTSIDE = 0.5
# A black and white mask whose brightest value is no more than this holds class numbers, which a threshold would lose.
_CLASS_NUMBERS = 16


def decode(data: bytes) -> np.ndarray:
    """The pixels of a file as they are stored: ``(H, W)`` or ``(H, W, C)``, any dtype."""
    if not data:
        raise DataError("is empty (0 bytes)")
    try:
        if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            return _channels_last(tifffile.imread(io.BytesIO(data)))
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as image:
                image.load()
                return np.asarray(image)
    # Decoders meet broken bytes with errors of every kind (OSError, SyntaxError, struct.error, ...).
    except Exception as error:
        raise DataError(f"cannot be read ({type(error).__name__}: {error})") from error


def _channels_last(pixels: np.ndarray) -> np.ndarray:
    """TIFF stores bands first or last: of three axes, the one of at most four planes is the bands."""
    if pixels.ndim == 3 and pixels.shape[0] <= 4 < pixels.shape[2]:
        return np.moveaxis(pixels, 0, -1)
    return pixels


def decode_image(data: bytes, num_bands: int, value_range: tuple[float, float], dtype: np.dtype) -> np.ndarray:
    """A SAR image as stored ``(C, H, W)`` of ``dtype`` (uint8 or uint16).

    A grey image saved as RGB counts as one band. Raw values are mapped linearly so that ``value_range`` spans the
    integers; values beyond are clipped, unless most are.

    Raises:
        DataError: unreadable, NaN or infinity, another number of bands, or mostly outside ``value_range``.
    """
    bands = _bands(decode(data), num_bands)
    if bands.dtype.kind == "f" and not np.isfinite(bands).all():
        raise DataError(f"holds NaN or infinity in {int((~np.isfinite(bands)).sum())} pixels; expected finite values")
    top = np.iinfo(dtype).max
    low, high = value_range
    if bands.dtype == dtype and (low, high) == (0, top):
        return bands
    outside = float(((bands < low) | (bands > high)).mean())
    if outside > _MOST_OUTSIDE:
        raise DataError(
            f"{100 * outside:.0f} % of the pixels ({bands.min():.4g} to {bands.max():.4g}) lie outside the value range "
            f"{low:g} to {high:g}; state the range of these images"
        )
    scaled = (bands.astype(np.float64) - low) * (top / (high - low))
    return np.rint(np.clip(scaled, 0, top)).astype(dtype)


def _bands(pixels: np.ndarray, num_bands: int) -> np.ndarray:
    if pixels.dtype.kind not in "uif" or pixels.ndim not in (2, 3):
        raise DataError(f"holds {pixels.dtype} pixels of shape {pixels.shape}; expected numbers in (H, W) or (H, W, C)")
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if num_bands == 1 and pixels.shape[2] in (3, 4):
        pixels = _grey(pixels)[..., None]
    if pixels.shape[2] != num_bands:
        raise DataError(f"holds {pixels.shape[2]} bands; expected {num_bands}")
    return np.ascontiguousarray(np.moveaxis(pixels, -1, 0))


def _grey(pixels_HWC: np.ndarray) -> np.ndarray:
    """The one band behind three equal channels; an alpha channel is left out."""
    colour = pixels_HWC[..., :3]
    red, green, blue = (colour[..., k] for k in range(3))
    highest, lowest = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    spread = float((highest - lowest).mean(dtype=np.float64))
    if not spread <= _GREY_TOLERANCE:  # NaN too
        raise DataError(f"is a colour image (channels differ by {spread:.1f} on average); expected one grey band")
    return colour[..., 0]


def decode_threshold(data: bytes, threshold: int = 128) -> np.ndarray:
    """A black and white mask as a class map ``(H, W)`` uint8: 1 where the grey value reaches ``threshold``."""
    pixels = decode(data)
    if pixels.dtype == bool:
        return pixels.astype(np.uint8)
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3):
        raise DataError(f"holds {pixels.dtype} pixels of shape {pixels.shape}; expected an 8-bit grey mask")
    grey = _grey(pixels) if pixels.ndim == 3 else pixels
    if 0 < grey.max() <= _CLASS_NUMBERS:
        raise DataError(
            f"unknown label values up to {grey.max()}: these look like class numbers; expected grey from 0 (sea) to "
            f"255 (oil), cut at {threshold}"
        )
    return (grey >= threshold).astype(np.uint8)


def decode_label(data: bytes, table: ClassTable) -> np.ndarray:
    """A class map ``(H, W)`` uint8 from class numbers in one channel, or from the table's colours in three.

    Raises:
        DataError: unreadable, NaN, or class numbers or colours that ``table`` does not know.
    """
    pixels = decode(data)
    if pixels.ndim == 3 and pixels.shape[2] in (3, 4):
        return _from_colours(pixels[..., :3], table)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if pixels.ndim != 2 or pixels.dtype.kind not in "uifb":
        raise DataError(f"holds {pixels.dtype} pixels of shape {pixels.shape}; expected class numbers (H, W)")
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        raise DataError("holds NaN or infinity; expected class numbers")
    unknown = [value for value in np.unique(pixels).tolist() if value not in {*range(len(table)), IGNORE}]
    if unknown:
        shown = ", ".join(f"{value:g}" for value in unknown[:10]) + (", ..." if len(unknown) > 10 else "")
        raise DataError(f"unknown label values {shown}; expected 0 to {len(table) - 1}, or {IGNORE} for not labelled")
    return pixels.astype(np.uint8)


def _from_colours(pixels_HWC: np.ndarray, table: ClassTable) -> np.ndarray:
    """Near-exact colours decide; anti-aliased edges take the class of the nearest decided pixel.

    Mixing by nearest colour instead would invent classes: half way from black to cyan lies near land's green.
    """
    colours = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in table.colours], np.int16)
    far = np.abs(pixels_HWC.astype(np.int16)[..., None, :] - colours).max(-1)  # (H, W, K)
    label = far.argmin(-1).astype(np.uint8)
    decided = far.min(-1) <= _COLOUR_TOLERANCE
    if decided.all():
        return label
    if decided.any():
        distance, (row, column) = distance_transform_edt(~decided, return_indices=True)
    else:
        distance, row, column = np.full(label.shape, np.inf), None, None
    if distance.max() > _EDGE_PX:
        worst = pixels_HWC[np.unravel_index(int(distance.argmax()), distance.shape)]
        raise DataError(
            f"unknown label colour #{''.join(f'{int(v):02x}' for v in worst)}; expected one of "
            + ", ".join(f"{colour} ({name})" for name, colour in zip(table.names, table.colours, strict=True))
        )
    return label[row, column]
