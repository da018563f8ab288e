"""Tiny sets on disk in the layouts of the real ones, for the tests of loading and preparing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from dakter.schema import OSD


def texture(number: int, height: int = 32, width: int = 32) -> np.ndarray:
    """A grey image unlike that of any other number, smooth enough to survive JPEG."""
    rng = np.random.default_rng(number)
    coarse = rng.integers(20, 236, (max(1, height // 8), max(1, width // 8)), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def half(height: int = 32, width: int = 32, value: int = 255) -> np.ndarray:
    """A mask whose right half is ``value``."""
    mask = np.zeros((height, width), np.uint8)
    mask[:, width // 2 :] = value
    return mask


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        tifffile.imwrite(path, pixels)
    else:
        Image.fromarray(pixels).save(path, quality=95)  # of JPEG; PNG knows no quality
    return path


def rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=2)


def make_sos(root: Path, num_train: int = 12, num_test: int = 4) -> Path:
    """Numbers restart in test, training masks hold grey edges, as in the real set."""
    for s, sensor in enumerate(("palsar", "sentinel")):
        for k in range(num_train):
            mask = half()
            mask[:, 15], mask[:, 16] = 127, 128
            save(root / f"train/{sensor}/{k:05d}_sat.jpg", rgb(texture(1000 * s + k)))
            save(root / f"train/{sensor}/{k:05d}_mask.png", rgb(mask))
        for k in range(num_test):
            save(root / f"test/{sensor}/sat/{k:05d}_sat.jpg", rgb(texture(1000 * s + 500 + k)))
            save(root / f"test/{sensor}/gt/{k:05d}_mask.png", rgb(half()))
    return root


def osd_label(height: int = 40, width: int = 72) -> np.ndarray:
    """Five upright bands, one of each class."""
    return np.repeat(np.arange(width) * 5 // width, height).reshape(width, height).T.astype(np.uint8)


def osd_colours(label: np.ndarray) -> np.ndarray:
    """``label`` in OSD's colours, edges anti-aliased as in the real RGB labels."""
    palette = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in OSD.colours], np.float32)
    drawn = palette[label]
    blurred = (np.roll(drawn, 1, 1) + drawn) / 2
    blurred[:, 0] = drawn[:, 0]
    return np.rint(blurred).astype(np.uint8)


def make_osd(root: Path, form: str = "labels_1D", num_train: int = 6, num_test: int = 3) -> Path:
    for split, count, offset in (("train", num_train, 0), ("test", num_test, 500)):
        for k in range(count):
            save(root / f"{split}/images/img_{k:04d}.jpg", rgb(texture(offset + k, 40, 72)))
            label = osd_label()
            save(root / f"{split}/{form}/img_{k:04d}.png", label if form == "labels_1D" else osd_colours(label))
    return root


CLASSES = """name: mine
sensor: s1
bands: [VV]
classes:
  - {name: sea, colour: "#000000"}
  - {name: oil, colour: "#00ffff"}
"""


def make_folder(root: Path, count: int = 12, classes: str = CLASSES) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / "classes.yaml").write_text(classes)
    for k in range(count):
        save(root / f"images/a{k}.png", texture(k))
        save(root / f"masks/a{k}.png", half(value=1))
    return root
