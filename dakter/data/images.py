"""Decoding image and mask files (JPEG, PNG, TIFF) to arrays, each file judged by itself.

Every function takes the bytes of one file and raises DataError with the reason alone; who calls adds the file's name.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import distance_transform_edt

from dakter.data.rasters import Raster, read
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
# A value this many spans of the stated range beyond it is none that was measured (-9999, 3.4e38); linear sigma0 of a
# ship may well be hundreds of times that of any sea.
_FAR, _FAR_ABOVE_LINEAR = 3.0, 1e4
# A black and white mask whose brightest value is no more than this holds class numbers, which a threshold would lose,
# and so does a mask of grey colours as dark as these.
_CLASS_NUMBERS = 16
# Palette colours are as exact as whoever made the palette; between two classes there is far more.
_PALETTE_TOLERANCE = 8


def decode_image(data: bytes, num_bands: int, value_range: tuple[float, float], dtype: np.dtype) -> np.ndarray:
    """A SAR image as stored ``(C, H, W)`` of ``dtype`` (uint8 or uint16).

    A grey image saved as RGB or with a palette counts as one band. Raw values are mapped linearly so that
    ``value_range`` spans the integers; values beyond are clipped, unless most are.

    Raises:
        DataError: unreadable, pixels without data (NaN, infinity, transparent, the file's no-data value, or a value
            far outside ``value_range``), another number of bands, or mostly outside ``value_range``.
    """
    raster = read(data)
    bands = _bands(raster.seen, num_bands)
    _refuse_gaps(raster, bands, value_range)
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


def _refuse_gaps(raster: Raster, bands_CHW: np.ndarray, value_range: tuple[float, float]) -> None:
    """Refuse pixels without data: clipped into the range they would pass for the darkest sea, or the brightest."""
    low, high = value_range
    span = high - low
    above = _FAR if low < 0 else _FAR_ABOVE_LINEAR
    far = (bands_CHW < low - _FAR * span) | (bands_CHW > high + above * span)
    gaps: list[tuple[str, np.ndarray]] = []
    if bands_CHW.dtype.kind == "f":
        gaps.append(("NaN or infinity", ~np.isfinite(bands_CHW)))
    if raster.nodata is not None:
        with np.errstate(over="ignore"):  # a tag beyond the pixels' type is met by none of them
            gaps.append((f"{raster.nodata:g}, by its GDAL_NODATA tag no data,", bands_CHW == raster.nodata))
    if raster.opaque is not None:
        gaps.append(("transparency", ~raster.opaque[None]))
    # Many such values are those of another unit, as the range will tell.
    if far.any() and (far.mean() <= _MOST_OUTSIDE or len(np.unique(bands_CHW[far])) == 1):
        gaps.append((f"{bands_CHW[far][0]:g}, far outside the value range {low:g} to {high:g},", far))
    for what, where in gaps:
        if count := int(where.any(0).sum()):
            raise DataError(
                f"holds {what} in {count} pixels ({100 * count / where[0].size:.1f} %); expected a measured value in "
                f"each: cut such parts off, or fill them and label them {IGNORE} (not labelled); a wrong tag or alpha "
                "channel can be taken away"
            )


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
    # Floats are no grey values of a viewer: bands of sigma0 differ by far less.
    if not spread <= (0.0 if pixels_HWC.dtype.kind == "f" else _GREY_TOLERANCE):  # NaN too
        raise DataError(f"is a colour image (channels differ by {spread:.3g} on average); expected one grey band")
    return colour[..., 0]


def decode_threshold(data: bytes, threshold: int = 128) -> np.ndarray:
    """A black and white mask as a class map ``(H, W)`` uint8: 1 where the grey value reaches ``threshold``."""
    pixels = read(data).seen
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if pixels.dtype == bool:
        return pixels.astype(np.uint8)
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))):
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

    A palette image counts by its colours where each one used is that of another class of ``table`` (tools that make
    palettes number them as they like), else by its indices.

    Raises:
        DataError: unreadable, NaN, or class numbers or colours that ``table`` does not know.
    """
    raster = read(data)
    pixels = raster.pixels
    if raster.palette is not None and (classes := _classes_of(pixels, raster.palette, table)) is not None:
        return classes[pixels]
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


def _colours(table: ClassTable) -> np.ndarray:
    """int16 ``(K, 3)``."""
    return np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in table.colours], np.int16)


def _classes_of(pixels_HW: np.ndarray, palette: np.ndarray, table: ClassTable) -> np.ndarray | None:
    """Class of each palette index, uint8, 256 or more; None where indices are class numbers themselves.

    They are colours if those in use are the colours of as many classes; index IGNORE, if its colour is no class's, is
    not labelled all the same. A palette of plain greys (i, i, i) is what numbers get that were never coloured.
    """
    used = np.unique(pixels_HW)
    far = np.abs(palette.astype(np.int16)[:, None] - _colours(table)).max(-1)  # (N, K)
    nearest = np.where(far.min(1) <= _PALETTE_TOLERANCE, far.argmin(1), IGNORE)
    named = used[used < len(palette)]
    if IGNORE in used and (len(palette) <= IGNORE or nearest[IGNORE] == IGNORE):
        used, named = used[used != IGNORE], named[named != IGNORE]
    plain = (palette[named] == named[:, None]).all()
    if len(named) < len(used) or plain or IGNORE in nearest[named] or len(set(nearest[named].tolist())) < len(named):
        return None
    classes = np.full(max(256, len(palette)), IGNORE, np.uint8)
    classes[named] = nearest[named]
    return classes


def _from_colours(pixels_HWC: np.ndarray, table: ClassTable) -> np.ndarray:
    """Near-exact colours decide; anti-aliased edges take the class of the nearest decided pixel.

    Mixing by nearest colour instead would invent classes: half way from black to cyan lies near land's green.
    """
    if pixels_HWC.dtype != np.uint8:
        raise DataError(f"holds {pixels_HWC.dtype} colours; expected 8 bits a channel, or class numbers in one channel")
    grey = pixels_HWC[..., 0]
    dark = grey[(grey > 0) & (grey <= _CLASS_NUMBERS)]
    numbers = np.isin(grey, [*range(_CLASS_NUMBERS + 1), IGNORE]).all()
    known = any(len(set(colour)) == 1 and colour[0] in dark for colour in _colours(table).tolist())
    if dark.size and numbers and not known and (pixels_HWC == grey[..., None]).all():
        raise DataError(
            f"unknown label colours up to #{dark.max():02x}{dark.max():02x}{dark.max():02x}: these look like class "
            "numbers in three equal channels; expected class numbers in one channel, or the classes' colours"
        )
    far = np.abs(pixels_HWC.astype(np.int16)[..., None, :] - _colours(table)).max(-1)  # (H, W, K)
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
            + f"; pixels that are not labelled need a mask of class numbers, where {IGNORE} says so"
        )
    return label[row, column]
