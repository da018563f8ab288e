"""The Deep-SAR Oil Spill set (SOS) in its own layout.

Zhu et al. 2022, "Oil spill contextual and boundary-supervised detection network based on marine SAR images", IEEE
TGRS 60: 256x256 pairs of ALOS PALSAR (Gulf of Mexico) and Sentinel-1A (Persian Gulf), binary masks::

    train/{palsar,sentinel}/NNNNN_sat.jpg, NNNNN_mask.png     test/{palsar,sentinel}/{sat,gt}/NNNNN_{sat.jpg,mask.png}

Numbering restarts in test. Images are grey JPEG saved as RGB; about half of the training masks hold grey values.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from dakter.data.catalogue import TEST, TRAIN, UNLABELLED, Catalogue, Entry, FileLoader
from dakter.data.images import decode_image, decode_threshold
from dakter.data.listing import files_below, pair
from dakter.schema import SOS
from dakter.storage import join

SENSORS = ("palsar", "sentinel")
MASK_THRESHOLD = 128  # grey values are resampling at the edge of oil (255) and sea (0)
_IMAGE, _LABEL = "_sat.jpg", "_mask.png"


def catalogue(root: str, unlabelled_root: str | None, sensors: tuple[str, ...] = SENSORS) -> Catalogue:
    """What stands below ``root``; ``unlabelled_root`` holds ``{palsar,sentinel}/NNNNN_sat.jpg`` without masks."""
    entries: list[Entry] = []
    faults: list[str] = []
    for sensor in sensors:
        train, test = join(root, TRAIN, sensor), join(root, TEST, sensor)
        for split, images, labels in ((TRAIN, train, train), (TEST, join(test, "sat"), join(test, "gt"))):
            more, wrong = _pairs(split, sensor, images, labels)
            entries, faults = entries + more, faults + wrong
        if unlabelled_root:
            more, wrong = _unlabelled(sensor, join(unlabelled_root, sensor))
            entries, faults = entries + more, faults + wrong
    return Catalogue(
        title="Deep-SAR Oil Spill (SOS)",
        licence="published mainly for scientific purposes; no licence stated",
        citation="Zhu et al. 2022, IEEE Transactions on Geoscience and Remote Sensing 60",
        table=SOS,
        bands=("backscatter",),
        value_range=(0.0, 255.0),
        sensors=sensors,
        entries=tuple(entries),
        faults=tuple(faults),
        loader=FileLoader(
            partial(decode_image, num_bands=1, value_range=(0.0, 255.0), dtype=np.dtype(np.uint8)),
            partial(decode_threshold, threshold=MASK_THRESHOLD),
        ),
    )


def _ending(url: str, suffixes: tuple[str, ...]) -> tuple[list[dict[str, str]], list[str]]:
    """Number -> URL for each suffix, and a fault for each file with none of them."""
    found: list[dict[str, str]] = [{} for _ in suffixes]
    faults = []
    for name in files_below(url):
        for numbers, suffix in zip(found, suffixes, strict=True):
            if name.endswith(suffix) and "/" not in name:
                numbers[name.removesuffix(suffix)] = join(url, name)
                break
        else:
            faults.append(
                f"{join(url, name)}: not expected here; expected " + " or ".join(f"NNNNN{s}" for s in suffixes)
            )
    return found, faults


def _pairs(split: str, sensor: str, images_url: str, labels_url: str) -> tuple[list[Entry], list[str]]:
    if images_url == labels_url:
        (images, labels), faults = _ending(images_url, (_IMAGE, _LABEL))
    else:
        (images,), faults = _ending(images_url, (_IMAGE,))
        (labels,), more = _ending(labels_url, (_LABEL,))
        faults += more
    entries, missing = pair(
        split,
        sensor,
        images,
        labels,
        expected_label=lambda number: join(labels_url, number + _LABEL),
        where=f"{images_url} (leave a sensor out with data.sensors)",
    )
    return entries, faults + missing


def _unlabelled(sensor: str, url: str) -> tuple[list[Entry], list[str]]:
    (images,), faults = _ending(url, (_IMAGE,))
    if not images:
        faults.append(f"{url}: no images; expected NNNNN{_IMAGE}, or no data.unlabelled_root")
    return [Entry(UNLABELLED, sensor, number, image) for number, image in images.items()], faults
