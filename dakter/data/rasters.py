"""Reading an image file (JPEG, PNG, TIFF) as it is stored, with what the file says of its own numbers.

Raises DataError with the reason alone; who calls adds the file's name.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

import numpy as np
import tifffile
from PIL import Image, UnidentifiedImageError

from dakter.errors import DataError

_TIFF_HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PNG_HEAD = b"\x89PNG\r\n\x1a\n"
_PNG_GREY = (b"\0", b"\3")  # colour types of grey and of palette images
_GDAL_NODATA = 42113
_ALPHA = (1, 2)  # of TIFF's ExtraSamples: associated and unassociated


@dataclass(frozen=True)
class Raster:
    """The pixels of a file.

    Attributes:
        pixels: as stored, ``(H, W)`` or ``(H, W, C)``, any dtype; of a palette image its indices.
        palette: sRGB uint8 ``(N, 3)`` of those indices; None where pixels are values themselves.
        opaque: bool ``(H, W)``, where the file's own transparency leaves something to see; None: it has none.
        nodata: the value that the file's GDAL_NODATA tag gives to pixels without data; None: no such tag.
    """

    pixels: np.ndarray
    palette: np.ndarray | None = None
    opaque: np.ndarray | None = None
    nodata: float | None = None

    @property
    def seen(self) -> np.ndarray:
        """Pixels as a viewer shows them: those of a palette image are its colours, ``(H, W, 3)``."""
        if self.palette is None:
            return self.pixels
        if self.pixels.max() >= len(self.palette):
            raise DataError(f"holds palette index {self.pixels.max()}; expected below {len(self.palette)}")
        return np.asarray(self.palette[self.pixels])


def read(data: bytes) -> Raster:
    """The raster of a file's bytes.

    Raises:
        DataError: empty, unreadable, or more bits a channel than would be read.
    """
    if not data:
        raise DataError("is empty (0 bytes)")
    # Pillow would cut them to 8 bits without a word.
    if data.startswith(_PNG_HEAD) and data[24:25] == b"\x10" and data[25:26] not in (b"", *_PNG_GREY):
        raise DataError(
            "has 16 bits a channel and several channels; expected a grey PNG of 16 bits or a TIFF, for a mask of "
            "colours 8 bits a channel"
        )
    try:
        return _read_tiff(data) if data[:4] in _TIFF_HEADS else _read_other(data)
    # Decoders meet broken bytes with errors of every kind (OSError, SyntaxError, struct.error, ...).
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        if isinstance(error, UnidentifiedImageError):  # which would name an address in memory
            reason = "no JPEG, PNG or TIFF, or cut short at its very beginning"
        raise DataError(f"cannot be read ({reason})") from error


def _read_tiff(data: bytes) -> Raster:
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages.first
        pixels = _channels_last(file.asarray())
        tag = page.tags.get(_GDAL_NODATA)
        colours = page.colormap if page.photometric == tifffile.PHOTOMETRIC.PALETTE else None
        alpha = pixels.ndim == 3 and pixels.shape[2] == 4 and any(int(kind) in _ALPHA for kind in page.extrasamples)
    if colours is not None:  # 16 bits by the standard, 8 by what some write
        colours = (colours.T >> (8 if colours.max() > 255 else 0)).astype(np.uint8)
    return Raster(pixels, colours, pixels[..., 3] > 0 if alpha else None, None if tag is None else _number(tag.value))


def _number(text: object) -> float | None:
    """The value of a GDAL_NODATA tag; None where it is none ("", "none")."""
    try:
        return float(str(text).strip("\0 "))
    except ValueError:
        return None


def _channels_last(pixels: np.ndarray) -> np.ndarray:
    """TIFF stores bands first or last: of three axes, the one of at most four planes is the bands."""
    if pixels.ndim == 3 and pixels.shape[0] <= 4 < pixels.shape[2]:
        return np.moveaxis(pixels, 0, -1)
    return pixels


def _read_other(data: bytes) -> Raster:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            opaque = np.asarray(image.convert("RGBA"))[..., 3] > 0 if image.has_transparency_data else None
            if image.mode == "P":
                palette = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
                return Raster(np.asarray(image), palette, opaque)
            if image.mode == "LA":  # an alpha channel is no band
                return Raster(np.asarray(image.getchannel("L")), opaque=opaque)
            return Raster(np.asarray(image), opaque=opaque)
