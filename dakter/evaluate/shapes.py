"""Shapes of the regions of a class map: how many parts, how large, how long."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import label

# Pixels that touch at a corner are of one part: a slick one pixel wide runs diagonally.
_TOUCHING = np.ones((3, 3), dtype=np.uint8)
# Second moment of a unit square about its middle: a pixel has a width, so that a line of pixels has one too.
_PIXEL_MOMENT = 1 / 12


@dataclass(frozen=True)
class Parts:
    """The connected parts of one class in one image.

    Attributes:
        area_share: of the image, float64 ``(P,)`` in (0, 1].
        elongation: float64 ``(P,)`` in [0, 1): 1 - minor / major axis of the ellipse of the same second moments; 0 is
            round (or square), near 1 a thread.
    """

    area_share: np.ndarray
    elongation: np.ndarray

    @classmethod
    def of(cls, mask: np.ndarray) -> Parts:
        """From a boolean map ``(H, W)``."""
        numbered, count = label(mask, structure=_TOUCHING)
        y, x = np.nonzero(numbered)
        part = numbered[y, x] - 1
        area = np.bincount(part, minlength=count).astype(np.float64)

        def mean(values: np.ndarray) -> np.ndarray:
            return np.bincount(part, weights=values, minlength=count) / area

        middle_y, middle_x = mean(y), mean(x)
        dy, dx = y - middle_y[part], x - middle_x[part]
        yy, xx, xy = mean(dy * dy) + _PIXEL_MOMENT, mean(dx * dx) + _PIXEL_MOMENT, mean(dy * dx)
        centre, radius = (yy + xx) / 2, np.hypot((yy - xx) / 2, xy)  # eigenvalues of [[yy, xy], [xy, xx]]
        return cls(area / mask.size, 1 - np.sqrt((centre - radius) / (centre + radius)))
