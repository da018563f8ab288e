"""What a source holds, before anything is done with it: its entries, how to load one, and what is at fault."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np

from dakter import storage
from dakter.data.duplicates import fingerprint, thumbnail
from dakter.errors import DataError, listing
from dakter.schema import ClassTable

T = TypeVar("T")
R = TypeVar("R")

TRAIN, VAL, TEST, UNLABELLED = "train", "val", "test", "unlabelled"
SPLITS = (TRAIN, VAL, TEST, UNLABELLED)


@dataclass(frozen=True)
class Entry:
    """One image: a pair of files, an image without mask, or a scene to simulate.

    ``split`` is the source's own (val is not yet cut from a download); ``file`` the image's name, unique within split
    and sensor; ``index`` the scene number of a simulated one.
    """

    split: str
    sensor: str
    file: str
    image: str = ""
    label: str | None = None
    index: int = 0


@dataclass(frozen=True)
class Loaded:
    """``image`` stored ``(C, H, W)``; ``label`` uint8 ``(H, W)``; ``fractions`` float32 ``(K, H, W)`` if known."""

    image: np.ndarray
    label: np.ndarray | None = None
    fractions: np.ndarray | None = None


class Loader(Protocol):
    """Loads an entry; a plain class or function, so that processes can share it."""

    def __call__(self, entry: Entry) -> Loaded: ...


@dataclass(frozen=True)
class FileLoader:
    """Loads an entry from its files; the decoders raise DataError with the reason, this adds the name."""

    decode_image: Callable[[bytes], np.ndarray]
    decode_label: Callable[[bytes], np.ndarray]

    def __call__(self, entry: Entry) -> Loaded:
        image = self._read(entry.image, self.decode_image)
        return Loaded(image, None if entry.label is None else self._read(entry.label, self.decode_label))

    def inspect(self, entry: Entry) -> Inspection:
        """Both files are read, so that both are named if both are at fault."""
        faults: list[str] = []
        image, label = self._try(entry.image, self.decode_image, faults), None
        if entry.label is not None:
            label = self._try(entry.label, self.decode_label, faults)
        if image is not None and label is not None and image.shape[1:] != label.shape:
            faults.append(
                f"{entry.label}: {label.shape[1]}x{label.shape[0]} pixels; expected "
                f"{image.shape[2]}x{image.shape[1]} as its image {entry.image}"
            )
        classes = () if label is None else tuple(np.unique(label).tolist())
        if image is None:
            return Inspection(tuple(faults), classes=classes)
        return Inspection(
            tuple(faults),
            (image.shape[1], image.shape[2]),
            thumbnail(image),
            fingerprint(image),
            (int(image.min()), int(image.max())),
            classes,
        )

    @staticmethod
    def _read(url: str, decode: Callable[[bytes], np.ndarray]) -> np.ndarray:
        try:
            return decode(storage.read_bytes(url))
        except (DataError, OSError) as error:
            raise DataError(f"{url}: {error}") from error

    def _try(self, url: str, decode: Callable[[bytes], np.ndarray], faults: list[str]) -> np.ndarray | None:
        try:
            return self._read(url, decode)
        except DataError as error:
            faults.append(str(error))
            return None


@dataclass(frozen=True)
class Inspection:
    """What the check of one entry found.

    Attributes:
        faults: a line each.
        shape: (rows, columns), zero for an unreadable image.
        span: lowest and highest stored value.
        classes: pixel values of the mask, IGNORE among them.
    """

    faults: tuple[str, ...]
    shape: tuple[int, int] = (0, 0)
    thumbnail: np.ndarray | None = None
    fingerprint: str = ""
    span: tuple[int, int] = (0, 0)
    classes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Catalogue:
    """Everything a source offers.

    Attributes:
        title: one line for people.
        entries: all images, of each split and sensor.
        faults: what the listing already shows to be wrong (missing twins, empty folders), a line each.
        loader: loads an entry; a FileLoader's entries are checked first, simulated ones need no check.
        value_range: raw value at stored 0 and at the largest stored integer of ``dtype``.
    """

    title: str
    licence: str
    citation: str
    table: ClassTable
    bands: tuple[str, ...]
    value_range: tuple[float, float]
    sensors: tuple[str, ...]
    entries: tuple[Entry, ...]
    loader: Loader
    faults: tuple[str, ...] = ()
    dtype: np.dtype = field(default_factory=lambda: np.dtype(np.uint8))


def refuse(faults: Sequence[str], where: str) -> None:
    """Raise DataError that names every file at fault, if any is."""
    if faults:
        many = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise DataError(
            f"{where}: {many} found before any work; mend or remove these files:\n{listing(list(faults), len(faults))}"
        )


def parallel(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """``map`` over threads, in order: decoders and numpy release the interpreter lock."""
    pool = ThreadPoolExecutor(max_workers=min(32, (os.cpu_count() or 1) * 2))
    try:
        yield from pool.map(function, items)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
