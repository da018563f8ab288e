"""Tiles, class maps, soft labels and entropy as small PNG files inside data URIs."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from dakter.schema import IGNORE, ClassTable

# Longest side of an embedded picture: a gallery of sixteen pairs stays near 1 MB whatever the tile size.
MAX_PX = 192
IGNORE_COLOUR = "#8c8c8c"
# Anchors of the cividis map (Nuñez et al. 2018, PLOS ONE 13(7) e0199239): even in lightness, and read alike with
# and without colour vision deficiency.
CIVIDIS = ("#00204c", "#31446b", "#666870", "#958f78", "#cab969", "#ffe945")


def rgb(colour: str) -> tuple[int, int, int]:
    """``#rrggbb`` as three integers."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def data_uri(picture: Image.Image) -> str:
    """A PNG as a data URI."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _fit(picture: Image.Image, how: Image.Resampling) -> Image.Image:
    scale = MAX_PX / max(picture.size)
    if scale >= 1:
        return picture
    return picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))), how)


def image(stored_CHW: np.ndarray) -> str:
    """The first band of a stored image (uint8 or uint16) in grey."""
    band = stored_CHW[0]
    grey = (band // 257).astype(np.uint8) if band.dtype == np.uint16 else band.astype(np.uint8)
    return data_uri(_fit(Image.fromarray(grey), Image.Resampling.BOX))


def class_map(label_HW: np.ndarray, classes: ClassTable) -> str:
    """A class map in the colours of the class table; unlabelled pixels in mid grey."""
    palette = np.full((256, 3), rgb(IGNORE_COLOUR), np.uint8)
    for k, colour in enumerate(classes.colours):
        palette[k] = rgb(colour)
    picture = Image.fromarray(label_HW.astype(np.uint8))
    picture.putpalette(palette.tobytes())
    return data_uri(_fit(picture, Image.Resampling.NEAREST))


def soft_label(soft_KHW: np.ndarray, classes: ClassTable) -> str:
    """Class colours mixed by probability; ``soft_KHW`` float in [0, 1], summing to 1 over K."""
    colours = np.array([rgb(colour) for colour in classes.colours], np.float32)
    mixed = np.einsum("khw,kc->hwc", soft_KHW.astype(np.float32), colours)
    picture = Image.fromarray(np.rint(np.clip(mixed, 0, 255)).astype(np.uint8))
    return data_uri(_fit(picture, Image.Resampling.BOX))


def entropy_nats(soft_KHW: np.ndarray) -> np.ndarray:
    """Shannon entropy of each pixel's probabilities, in nats, float32 (H, W); 0 log 0 is 0."""
    p = soft_KHW.astype(np.float32)
    return -(p * np.log(np.where(p > 0, p, 1.0))).sum(axis=0)


def entropy(soft_KHW: np.ndarray) -> str:
    """Entropy from 0 (dark) to ln K (bright, all classes equally likely)."""
    return probability(entropy_nats(soft_KHW) / np.log(soft_KHW.shape[0]))


def probability(share_HW: np.ndarray) -> str:
    """Values from 0 (dark) to 1 (bright); what lies outside is clipped."""
    anchors = np.array([rgb(colour) for colour in CIVIDIS], np.float32)
    at = np.linspace(0, 1, len(anchors))
    ramp = np.stack([np.interp(np.linspace(0, 1, 256), at, anchors[:, c]) for c in range(3)], axis=1)
    picture = Image.fromarray(np.rint(np.clip(share_HW, 0, 1) * 255).astype(np.uint8))
    picture.putpalette(np.rint(ramp).astype(np.uint8).tobytes())
    return data_uri(_fit(picture, Image.Resampling.NEAREST))


def shares_in_words(label_HW: np.ndarray, classes: ClassTable) -> str:
    """What a class map holds, largest share first: ``sea surface 91 %, oil spill 9 %``."""
    shares = [(float((label_HW == k).mean()), name) for k, name in enumerate(classes.names)]
    shares.append((float((label_HW == IGNORE).mean()), "not labelled"))
    found = sorted((pair for pair in shares if pair[0] > 0), key=lambda pair: -pair[0])
    return ", ".join(f"{name} {_percent(share)}" for share, name in found)


def _percent(share: float) -> str:
    return "<\u202f1\u202f%" if share < 0.005 else f"{100 * share:.0f}\u202f%"
