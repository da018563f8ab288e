"""The Oil Spill Detection set (OSD) in its own layout.

Krestenitis et al. 2019, "Oil Spill Identification from Satellite Images Using Deep Neural Networks", Remote Sensing
11(15) 1762: Sentinel-1 VV images of 1250x650 pixels in five classes::

    {train,test}/images/*.jpg     {train,test}/labels_1D/*.png (class numbers)  or  {train,test}/labels/*.png (colours)
"""

from __future__ import annotations

from functools import partial

import numpy as np

from dakter.data.catalogue import TEST, TRAIN, Catalogue, Entry, FileLoader
from dakter.data.images import decode_image, decode_label
from dakter.data.listing import by_stem, files_below, pair, unlabelled
from dakter.schema import OSD
from dakter.storage import join

SENSOR = "sentinel-1"
_FOLDERS = ("images", "labels_1D", "labels")


def catalogue(root: str, unlabelled_root: str | None) -> Catalogue:
    """What stands below ``root``; class numbers are preferred to colours. ``unlabelled_root`` holds images alone."""
    entries: list[Entry] = []
    faults: list[str] = []
    for split in (TRAIN, TEST):
        more, wrong = _pairs(split, join(root, split))
        entries, faults = entries + more, faults + wrong
    if unlabelled_root:
        more, wrong = unlabelled(SENSOR, unlabelled_root)
        entries, faults = entries + more, faults + wrong
    return Catalogue(
        title="Oil Spill Detection Dataset (OSD)",
        licence="on request from its authors, for research",
        citation="Krestenitis et al. 2019, Remote Sensing 11(15) 1762",
        table=OSD,
        bands=("VV",),
        value_range=(0.0, 255.0),
        sensors=(SENSOR,),
        entries=tuple(entries),
        faults=tuple(faults),
        loader=FileLoader(
            partial(decode_image, num_bands=1, value_range=(0.0, 255.0), dtype=np.dtype(np.uint8)),
            partial(decode_label, table=OSD),
        ),
    )


def _pairs(split: str, url: str) -> tuple[list[Entry], list[str]]:
    names = files_below(url)
    inside = {folder: [n.partition("/")[2] for n in names if n.startswith(f"{folder}/")] for folder in _FOLDERS}
    label_folder = "labels_1D" if inside["labels_1D"] or not inside["labels"] else "labels"
    images, faults = by_stem(join(url, "images"), inside["images"], (".jpg", ".jpeg"))
    labels, more = by_stem(join(url, label_folder), inside[label_folder], (".png",))
    entries, missing = pair(
        split,
        SENSOR,
        images,
        labels,
        expected_label=lambda stem: join(url, label_folder, f"{stem}.png"),
        where=join(url, "images"),
    )
    return entries, faults + more + missing
