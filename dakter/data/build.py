"""Writing a tile corpus: check everything, split, cut and resample, write, read back, and say so last."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dakter import storage
from dakter.data.catalogue import (
    SPLITS,
    TRAIN,
    UNLABELLED,
    Catalogue,
    FileLoader,
    Inspection,
    Loaded,
    parallel,
    refuse,
)
from dakter.data.changed import put_record, refuse_changed
from dakter.data.duplicates import near_duplicates
from dakter.data.resample import area_mean, shrink_image, shrink_label, windows
from dakter.data.source import DataConfig, catalogue
from dakter.data.splits import Assignment, Member, assign
from dakter.data.tiles import (
    SCHEMA_VERSION,
    Split,
    TileCorpus,
    TilesConfig,
    TilesManifest,
    arrays_of,
    corpus_digest,
    read_arrays,
    split_digest,
    write_split,
)
from dakter.data.whole import check_whole, tell_absent
from dakter.errors import ConfigError, ConflictError, IntegrityError, Stopped, listing
from dakter.progress import Progress
from dakter.schema import IGNORE, check_images, check_labels, soft_to_stored, to_model

log = logging.getLogger("dakter.data")

_ARRAYS = ("dev.zarr", "test.zarr")
# The source's place may change, or be gone, once the tiles stand: null then takes the tiles as they are.
_PLACES = ("data.root", "data.unlabelled_root")


@dataclass(frozen=True)
class Prepared:
    """A complete corpus; ``images_per_second`` is 0 where it stood already."""

    manifest: TilesManifest
    already_done: bool
    num_images: int = 0
    images_per_second: float = 0.0


def prepare(data: DataConfig, tiles: TilesConfig, url: str, *, should_stop: Callable[[], bool]) -> Prepared:
    """Make the tile corpus of ``data`` at ``url``, or return the one that stands.

    Tiles of one split are held in memory at a time. A start after a kill writes everything again: the same settings
    give the same bytes.

    Raises:
        DataError: names every file at fault, before anything is written.
        ConflictError: a corpus with other settings, or of files that changed since, stands at ``url``.
        Stopped: ``should_stop`` said so; no manifest was written.
    """
    settings = {"data": data.dump(), "tiles": tiles.dump(), "schema_version": SCHEMA_VERSION}
    standing = _standing(url, settings)
    if standing is not None:
        refuse_changed(url, data)
        return Prepared(standing, already_done=True)
    offer = catalogue(data)
    if not offer.entries:
        refuse(offer.faults, offer.title)
    if offer.faults:
        log.warning(
            "%s: %d faults already in its listing; they are told with those of the files",
            offer.title,
            len(offer.faults),
        )
    # Before hours of decoding: this fails where nothing may be written.
    storage.check_writable(url)
    assignment = assign(offer.entries, _resembling(offer, data, tiles, should_stop), data)
    _tell_leakage(assignment, data)
    _claim(url, settings)

    start = time.monotonic()
    num_images = sum(len(members) for members in assignment.members.values())
    progress = Progress(log, "prepare: tiles", num_images, "images")
    attributes = {
        "class_table": offer.table.to_json(),
        "value_range": list(offer.value_range),
        "bands": list(offer.bands),
        "sensors": list(offer.sensors),
        "tile_px": tiles.size_px,
    }
    names: dict[str, list[str]] = {}
    figures: dict[str, _Figures] = {}
    for name in _ARRAYS:
        storage.remove_folder(storage.join(url, name))
    for split in SPLITS:
        loaded = _loaded(offer, assignment.members[split], progress, should_stop)
        made, fractions = _cut(split, loaded, offer, tiles)
        write_split(url, split, arrays_of(made, fractions), attributes)
        names[split] = made.names
        figures[split] = _Figures.of(url, split, made, fractions, offer)
    tell_absent({split: figures[split].class_shares for split in SPLITS}, offer.table)
    rate = progress.rate if progress.seconds > 0 else num_images / max(time.monotonic() - start, 1e-9)
    storage.put_json(storage.join(url, "samples.json"), names)
    put_record(url, offer, data)
    manifest = _manifest(offer, assignment, tiles, settings, figures)
    _finish(url, manifest)
    return Prepared(manifest, already_done=False, num_images=num_images, images_per_second=rate)


def _standing(url: str, settings: dict[str, Any]) -> TilesManifest | None:
    """The complete corpus at ``url`` if it was made with ``settings``; raises ConflictError if with others."""
    if storage.exists(storage.join(url, "manifest.json")):
        manifest = TileCorpus.open(url).manifest
        _same(url, manifest.settings, settings, "a corpus")
        return manifest
    identity = storage.join(url, "identity.json")
    if storage.exists(identity):
        _same(url, storage.read_json(identity), settings, "an unfinished corpus")
    return None


def _claim(url: str, settings: dict[str, Any]) -> None:
    """Put the settings first, once: of two starts with different settings one is told.

    Arrays where no tiles were begun are somebody else's, and would be removed.
    """
    if not storage.exists(storage.join(url, "identity.json")):
        for name in _ARRAYS:
            if storage.sizes(storage.join(url, name)):
                raise ConflictError(
                    f"{storage.join(url, name)} stands there, and no tiles were begun in its folder; choose another "
                    "place (--out or --paths.tiles), or remove it"
                )
    try:
        storage.put_json_new(storage.join(url, "identity.json"), settings)
    except FileExistsError:
        _same(url, storage.read_json(storage.join(url, "identity.json")), settings, "an unfinished corpus")


def _same(url: str, stands: Mapping[str, Any], asked: Mapping[str, Any], what: str) -> None:
    old, new = dict(_leaves(stands)), dict(_leaves(asked))
    different = [
        f"{key}: stands {old.get(key)!r}, asked {new.get(key)!r}"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key) and not (key in _PLACES and new.get(key) is None)
    ]
    if different:
        raise ConflictError(
            f"{url}: {what} with other settings stands here; ask for the same, choose another place (--out or "
            f"--paths.tiles), or remove this one:\n{listing(different)}"
        )


def _leaves(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _resembling(offer: Catalogue, data: DataConfig, tiles: TilesConfig, should_stop: Callable[[], bool]) -> np.ndarray:
    """Near-duplicate pairs of the entries, after every file was read and found good."""
    if not isinstance(offer.loader, FileLoader):
        # Scenes of different indices are independent draws; a calm sea may still look like another.
        scene_px = data.simulate.size_px
        if tiles.window_px and tiles.window_px > scene_px:
            raise ConfigError(
                f"tiles.window_px is {tiles.window_px} with scenes of {scene_px} px; expected at most "
                "data.simulate.size_px: lower it, or render larger scenes"
            )
        _check_window(tiles, tiles.window_px or scene_px)
        return np.empty((0, 2), np.int64)
    progress = Progress(log, "prepare: check", len(offer.entries), "images")
    found = list(_counted(parallel(offer.loader.inspect, offer.entries), progress, should_stop))
    faults = [fault for inspection in found for fault in inspection.faults]
    refuse([*offer.faults, *faults, *_shape_faults(offer, found, tiles)], offer.title)
    check_whole(offer, found)
    thumbnails = np.stack([i.thumbnail for i in found if i.thumbnail is not None])
    return near_duplicates(thumbnails, [i.fingerprint for i in found], data.duplicate_correlation)


def _check_window(tiles: TilesConfig, window_px: int) -> None:
    if window_px < tiles.size_px or tiles.overlap_px >= window_px:
        raise ConfigError(
            f"tiles.size_px {tiles.size_px} with windows of {window_px} px and tiles.overlap_px {tiles.overlap_px}; "
            "expected size_px of at most the window and an overlap below it: nothing is magnified"
        )


def _shape_faults(offer: Catalogue, found: list[Inspection], tiles: TilesConfig) -> list[str]:
    shapes = [inspection.shape for inspection in found]
    readable = Counter(shape for shape in shapes if shape != (0, 0))
    if not readable:
        return []
    usual = readable.most_common(1)[0][0]
    window_px = tiles.window_px or min(usual)
    _check_window(tiles, window_px)
    faults = []
    for entry, shape in zip(offer.entries, shapes, strict=True):
        if shape == (0, 0):
            continue
        if tiles.window_px is None and shape != usual:
            faults.append(
                f"{entry.image}: {shape[1]}x{shape[0]} pixels; expected {usual[1]}x{usual[0]} as most of the set, or "
                "state tiles.window_px"
            )
        elif min(shape) < window_px:
            faults.append(f"{entry.image}: {shape[1]}x{shape[0]} pixels; expected at least windows of {window_px}")
    return faults


def _tell_leakage(assignment: Assignment, data: DataConfig) -> None:
    leaking = {key: n for key, n in assignment.leakage["num_pairs"].items() if n}
    if leaking:
        log.warning(
            "near-duplicates across splits (pairs): %s; listed in the manifest; data.drop_duplicates true leaves them "
            "out",
            ", ".join(f"{key} {n}" for key, n in leaking.items()),
        )
    simulated = data.source == "simulate"
    assignment.leakage["rule"] = (
        "scenes of different indices are independent draws; not compared"
        if simulated
        else f"correlation of 24x24 thumbnails above {data.duplicate_correlation:g} over 8 flips and rotations, or "
        "equal pixels"
    )


def _counted(items: Iterable[Any], progress: Progress, should_stop: Callable[[], bool]) -> Iterator[Any]:
    for item in items:
        if should_stop():
            raise Stopped("stopped as asked; no tile corpus was finished; the same command starts it again")
        progress.advance()
        yield item


def _loaded(
    offer: Catalogue, members: list[Member], progress: Progress, should_stop: Callable[[], bool]
) -> Iterator[tuple[Member, Loaded]]:
    loaded = parallel(lambda member: offer.loader(member.entry), members)
    return zip(members, _counted(loaded, progress, should_stop), strict=True)


def _cut(
    split: str, loaded: Iterable[tuple[Member, Loaded]], offer: Catalogue, tiles: TilesConfig
) -> tuple[Split, np.ndarray | None]:
    """Tiles of a split, with the true class fractions as stored (uint8) if every image has them."""
    num_classes, size = len(offer.table), tiles.size_px
    images: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    fractions: list[np.ndarray] = []
    groups: list[int] = []
    sensors: list[int] = []
    names: list[str] = []
    for member, item in loaded:
        shape_HW = (item.image.shape[1], item.image.shape[2])
        window_px = tiles.window_px or min(shape_HW)
        corners = windows(shape_HW, window_px, tiles.overlap_px)
        label = np.full(shape_HW, IGNORE, np.uint8)
        if split != UNLABELLED and item.label is not None:
            label = item.label.copy()
        for row, column in corners:
            here = (slice(row, row + window_px), slice(column, column + window_px))
            images.append(shrink_image(item.image[:, *here], size))
            labels.append(shrink_label(label[here], num_classes, size))
            if split not in (UNLABELLED, TRAIN):
                label[here] = IGNORE  # scores count a pixel once, in the first window that holds it
            if split != UNLABELLED and item.fractions is not None:
                fractions.append(soft_to_stored(area_mean(item.fractions[:, *here], (size, size))[None])[0])
            groups.append(member.group)
            sensors.append(offer.sensors.index(member.entry.sensor))
            names.append(member.name + (f"#{row},{column}" if len(corners) > 1 else ""))
    made = Split(
        images=_stack(images, (len(offer.bands), size, size), offer.dtype),
        labels=_stack(labels, (size, size), np.dtype(np.uint8)),
        groups=np.array(groups, np.int32),
        sensors=np.array(sensors, np.int16),
        names=names,
    )
    check_images(made.images, where=split, bands=len(offer.bands))
    check_labels(made.labels, made.images, num_classes, where=split)
    assert len(set(names)) == len(names), f"{split}: names repeat"
    return made, np.stack(fractions) if names and len(fractions) == len(names) else None


def _stack(rows: list[np.ndarray], inner: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    return np.stack(rows).astype(dtype, copy=False) if rows else np.empty((0, *inner), dtype)


@dataclass(frozen=True)
class _Figures:
    """What the manifest tells of a split, from the bytes read back."""

    digest: str
    count: int
    by_sensor: dict[str, int]
    class_shares: list[float]
    image_rms: float
    image_std: float

    @classmethod
    def of(cls, url: str, split: str, made: Split, fractions: np.ndarray | None, offer: Catalogue) -> _Figures:
        stored = read_arrays(url, split)
        digest = split_digest(stored, made.names)
        if digest != split_digest(arrays_of(made, fractions), made.names):
            raise IntegrityError(f"{url}, {split}: what was read back is not what was written; check the storage")
        counts = np.bincount(stored["label"].ravel(), minlength=256)[: len(offer.table)]
        mean, square = _moments(stored["image"])
        return cls(
            digest=digest,
            count=len(made.names),
            by_sensor={name: int((stored["sensor"] == k).sum()) for k, name in enumerate(offer.sensors)},
            class_shares=[round(float(share), 8) for share in counts / max(1, int(counts.sum()))],
            image_rms=float(np.sqrt(square)),
            image_std=float(np.sqrt(max(0.0, square - mean**2))),
        )


def _moments(images: np.ndarray) -> tuple[float, float]:
    """Mean and mean square on the model scale, from a histogram: exact sums whatever the number of pixels."""
    histogram = np.bincount(images.ravel(), minlength=np.iinfo(images.dtype).max + 1)
    values = to_model(np.arange(len(histogram)).astype(images.dtype)).numpy().astype(np.float64)
    total = max(1, int(histogram.sum()))
    return float((histogram * values).sum() / total), float((histogram * values**2).sum() / total)


def _manifest(
    offer: Catalogue,
    assignment: Assignment,
    tiles: TilesConfig,
    settings: dict[str, Any],
    figures: dict[str, _Figures],
) -> TilesManifest:
    digests = {split: figures[split].digest for split in SPLITS}
    meaning = {
        "class_table": offer.table.to_json(),
        "bands": list(offer.bands),
        "value_range": list(offer.value_range),
        "sensors": list(offer.sensors),
    }
    train = figures[TRAIN]
    return TilesManifest(
        digest=corpus_digest(digests, meaning),
        split_digests=digests,
        source=offer.title,
        licence=offer.licence,
        citation=offer.citation,
        class_table=offer.table,
        bands=offer.bands,
        tile_px=tiles.size_px,
        dtype=offer.dtype.name,
        value_range=offer.value_range,
        sensors=offer.sensors,
        counts={split: figures[split].count for split in SPLITS},
        counts_by_sensor={split: figures[split].by_sensor for split in SPLITS},
        class_shares={split: figures[split].class_shares for split in SPLITS if split != UNLABELLED},
        image_rms=train.image_rms,
        image_std=train.image_std,
        # E[y^2] = 1 for one-hot labels in {-1, +1}, so b is the power of the images alone.
        b_rms=train.image_rms,
        b_std=train.image_std,
        leakage=assignment.leakage,
        settings=settings,
    )


def _finish(url: str, manifest: TilesManifest) -> None:
    where = storage.join(url, "manifest.json")
    try:
        storage.put_json_new(where, manifest.to_json())
    except FileExistsError:  # a twin with the same settings was faster
        stands = TileCorpus.open(url).manifest
        if stands.digest != manifest.digest:
            raise IntegrityError(
                f"{where}: digest {stands.digest[:16]} stands, {manifest.digest[:16]} was made from the same settings; "
                "the source's files changed in between, remove the corpus and run jobs/prepare.py again"
            ) from None
