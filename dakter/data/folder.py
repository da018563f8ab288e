"""A user's own set: a folder of images, a folder of masks, and ``classes.yaml`` that says what they mean.

::

    images/NAME.{jpg,png,tif}  masks/NAME.{png,tif}  classes.yaml          test is cut off by data.test_share, or
    {train,test}/images/...    {train,test}/masks/...  classes.yaml        test is the user's own

Images are 8-bit, 16-bit or float with one or two bands; masks hold class numbers in one channel, or the classes'
colours in three; 255 is "not labelled". For example::

    name: my-slicks
    sensor: sentinel-1
    bands: [VV]
    value_range: [-35, 0]        # raw values (here dB) at the two ends of the stored integers
    classes:
      - {name: sea surface, colour: "#000000"}
      - {name: oil spill, colour: "#00ffff"}
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import numpy as np
from pydantic import model_validator

from dakter import config, storage
from dakter.config import Config, setting
from dakter.data.catalogue import TEST, TRAIN, VAL, Catalogue, Entry, FileLoader
from dakter.data.images import IMAGE_SUFFIXES, LABEL_SUFFIXES, decode_image, decode_label
from dakter.data.listing import by_stem, files_below, pair, unlabelled
from dakter.errors import DataError
from dakter.schema import ClassTable
from dakter.storage import join


class ClassRow(Config):
    """One class; its place in the list is its number in the masks."""

    name: str = setting(..., "name of the class", min_length=1)
    colour: str = setting(..., "sRGB colour, #rrggbb in lower case", pattern="^#[0-9a-f]{6}$")


class FolderTable(Config):
    """What ``classes.yaml`` states."""

    name: str = setting("folder", "name of the set", min_length=1)
    sensor: str = setting("sensor", "what took the images", pattern="^[A-Za-z0-9_.-]+$")
    bands: tuple[str, ...] = setting(("VV",), "names of the bands, in order", min_length=1, max_length=2)
    value_range: tuple[float, float] = setting(
        (0.0, 255.0), "raw values at the ends of the stored integers; 0 to 255 is stored in 8 bits, all else in 16"
    )
    classes: tuple[ClassRow, ...] = setting(..., "the classes, in order of their numbers", min_length=2, max_length=32)
    licence: str = setting("not stated", "licence of the images")
    citation: str = setting("not stated", "where the set is described")

    @model_validator(mode="after")
    def _sound(self) -> FolderTable:
        if self.value_range[0] >= self.value_range[1]:
            raise ValueError(f"a value_range with its lower end first, not {list(self.value_range)}")
        for kind in ("name", "colour"):
            values = [getattr(row, kind) for row in self.classes]
            if len(set(values)) < len(values):
                raise ValueError(f"a different {kind} for each class, not {values}")
        return self


def read_table(root: str) -> FolderTable:
    """``classes.yaml`` below ``root``; raises DataError if it is missing, ConfigError if it does not fit."""
    where = join(root, "classes.yaml")
    try:
        text = storage.read_bytes(where).decode()
    except FileNotFoundError as error:
        raise DataError(
            f"{where}: not there; expected images/, masks/ and a text file classes.yaml that names the classes of the "
            f"masks in {root} (data.root)"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: {error}; expected a text file that names the classes of the masks") from error
    return config.load(FolderTable, config.read_yaml(text, where=where), where=where)


def catalogue(root: str, unlabelled_root: str | None) -> Catalogue:
    """What stands below ``root``; ``unlabelled_root`` is a folder of images alone."""
    table = read_table(root)
    names = files_below(root)
    own_test = any(name.startswith((f"{TRAIN}/", f"{TEST}/")) for name in names)
    entries: list[Entry] = []
    faults = _left_out(root, names) if own_test else []
    for split, url in ((TRAIN, join(root, TRAIN)), (TEST, join(root, TEST))) if own_test else ((TRAIN, root),):
        more, wrong = _pairs(split, table.sensor, url)
        entries, faults = entries + more, faults + wrong
    if unlabelled_root:
        more, wrong = unlabelled(table.sensor, unlabelled_root)
        entries, faults = entries + more, faults + wrong
    classes = ClassTable(table.name, tuple(c.name for c in table.classes), tuple(c.colour for c in table.classes))
    dtype = np.dtype(np.uint8 if table.value_range == (0.0, 255.0) else np.uint16)
    return Catalogue(
        title=table.name,
        licence=table.licence,
        citation=table.citation,
        table=classes,
        bands=table.bands,
        value_range=table.value_range,
        sensors=(table.sensor,),
        entries=tuple(entries),
        faults=tuple(faults),
        loader=FileLoader(
            partial(decode_image, num_bands=len(table.bands), value_range=table.value_range, dtype=dtype),
            partial(decode_label, table=classes),
        ),
        dtype=dtype,
    )


def _left_out(root: str, names: Iterable[str]) -> list[str]:
    """Folders of pairs beside ``train`` and ``test``, which would be passed over without a word."""
    others = {name.partition("/")[0] for name in names} & {VAL, "valid", "validation", "images", "masks"}
    return [
        f"{join(root, name)}: not read beside {TRAIN}/ and {TEST}/; move its pairs into {TRAIN}/, from which "
        "data.val_share cuts val in whole groups of near-duplicates, or elsewhere"
        for name in sorted(others)
    ]


def _pairs(split: str, sensor: str, url: str) -> tuple[list[Entry], list[str]]:
    images, faults = by_stem(join(url, "images"), files_below(join(url, "images")), IMAGE_SUFFIXES)
    labels, more = by_stem(join(url, "masks"), files_below(join(url, "masks")), LABEL_SUFFIXES)
    entries, missing = pair(
        split,
        sensor,
        images,
        labels,
        expected_label=lambda stem: join(url, "masks", f"{stem}.png"),
        where=join(url, "images"),
    )
    return entries, faults + more + missing
