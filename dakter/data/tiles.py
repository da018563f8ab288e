"""The tile corpus: what every later stage learns from, as zarr v3 that xarray opens.

::

    <url>/identity.json      settings, put first and only once: a place belongs to one set of settings
    <url>/dev.zarr           groups train, val, unlabelled
    <url>/test.zarr          group test, apart, so that a copy without it is a folder less
    <url>/samples.json       names of the samples of each split
    <url>/manifest.json      written last: its presence says that the corpus is complete

A group holds image (sample, band, y, x), label (sample, y, x), group (sample), sensor (sample) and, where the truth is
known, fraction (sample, class, y, x) as uint8 that sums to 255. Test is read by ``read_test`` alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import zarr
from zarr.codecs import ZstdCodec

from dakter import storage
from dakter.config import Config, digest_json, setting
from dakter.data.catalogue import SPLITS, TEST
from dakter.errors import DataError, IntegrityError, StorageError
from dakter.schema import IGNORE, ClassTable, check_images, check_labels, soft_from_stored

SCHEMA_VERSION = 1
DIMENSIONS = {
    "image": ("sample", "band", "y", "x"),
    "label": ("sample", "y", "x"),
    "fraction": ("sample", "class", "y", "x"),
    "group": ("sample",),
    "sensor": ("sample",),
}


class TilesConfig(Config):
    """How images become tiles: windows of the image, each resampled to the tile size."""

    size_px: int = setting(64, "side of a tile", unit="px", ge=8, le=4096, multiple_of=8)
    window_px: int | None = setting(
        None,
        "side of the windows cut from an image, then reduced to size_px (area mean of the image, largest class of the "
        "label); equal to size_px it crops; null: the shorter side of the images",
        unit="px of the image",
        ge=8,
    )
    overlap_px: int = setting(
        0,
        "least overlap of neighbouring windows; in val and test a pixel counts only in the first one",
        unit="px of the image",
        ge=0,
    )


@dataclass(frozen=True)
class Split:
    """One split in memory.

    Attributes:
        images: stored (uint8 or uint16) ``(N, C, H, W)``.
        labels: uint8 ``(N, H, W)`` classes or IGNORE; all IGNORE in "unlabelled".
        groups: int32 ``(N,)`` near-duplicate group, unique across splits; tiles of one image share it.
        sensors: int16 ``(N,)`` index into ``manifest.sensors``.
        names: unique, ``<split>/<sensor>/<file>`` with ``#row,column`` (of the image) where it was cut in windows.
        fractions: float32 ``(N, K, H, W)`` true class fractions of simulated scenes, else None.
    """

    images: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    sensors: np.ndarray
    names: list[str]
    fractions: np.ndarray | None = None


@dataclass(frozen=True)
class TilesManifest:
    """What the corpus holds. Image statistics and b are of train alone, at the tile size, pooled over sensors.

    ``image_rms`` and ``image_std`` are on the model scale [-1, 1]; ``b_rms`` and ``b_std`` make label power equal image
    power, b = sqrt(E[x^2] / E[y^2]) with one-hot y in {-1, +1}, where E[y^2] = 1 (DAKTer's balancing factor; its own
    formula is not published). ``value_range`` is the raw value at stored 0 and at the largest stored integer.
    ``class_shares`` count labelled pixels. ``digest`` covers every decoded array of every split, and the names.
    """

    digest: str
    split_digests: dict[str, str]
    source: str
    licence: str
    citation: str
    class_table: ClassTable
    bands: tuple[str, ...]
    tile_px: int
    dtype: str
    value_range: tuple[float, float]
    sensors: tuple[str, ...]
    counts: dict[str, int]
    counts_by_sensor: dict[str, dict[str, int]]
    class_shares: dict[str, list[float]]
    image_rms: float
    image_std: float
    b_rms: float
    b_std: float
    leakage: dict[str, Any]
    settings: dict[str, Any]
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "class_table": self.class_table.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], *, where: str) -> TilesManifest:
        """Raises IntegrityError if ``data`` is no manifest of this version."""
        if data.get("schema_version") != SCHEMA_VERSION:
            raise IntegrityError(
                f"{where}: schema version {data.get('schema_version')!r}; expected {SCHEMA_VERSION}. Run "
                "jobs/prepare.py again, to another place"
            )
        try:
            lists = {key: tuple(data[key]) for key in ("bands", "value_range", "sensors")}
            return cls(**{**data, **lists, "class_table": ClassTable.from_json(data["class_table"])})
        except (KeyError, TypeError) as error:
            raise IntegrityError(f"{where}: not a manifest of a tile corpus ({error})") from error


def group_url(url: str, split: str) -> str:
    """URL of the zarr store that holds a split."""
    return storage.join(url, "test.zarr" if split == TEST else "dev.zarr")


def arrays_of(split: Split, stored_fractions: np.ndarray | None) -> dict[str, np.ndarray]:
    """The arrays of a split as they are stored; ``stored_fractions`` uint8 ``(N, K, H, W)``."""
    arrays = {"image": split.images, "label": split.labels, "group": split.groups, "sensor": split.sensors}
    return arrays if stored_fractions is None else {**arrays, "fraction": stored_fractions}


def split_digest(arrays: Mapping[str, np.ndarray], names: list[str]) -> str:
    """sha256 over names, types, shapes and decoded values."""
    total = hashlib.sha256(digest_json(names).encode())
    for key in sorted(arrays):
        value = np.ascontiguousarray(arrays[key])
        total.update(f"{key}{value.dtype.str}{value.shape}".encode())
        total.update(value.astype(value.dtype.newbyteorder("<"), copy=False).tobytes())
    return total.hexdigest()


def corpus_digest(split_digests: Mapping[str, str], meaning: Mapping[str, Any]) -> str:
    """sha256 over the splits and over what their numbers mean (classes, bands, value range, sensors)."""
    return digest_json({"splits": dict(split_digests), **meaning})


def write_split(url: str, split: str, arrays: Mapping[str, np.ndarray], attributes: dict[str, Any]) -> None:
    """Write one group whole: one chunk a sample, whole shards, zstd with checksum, dimension names."""
    root = zarr.open_group(storage.zarr_store(group_url(url, split)), mode="a", zarr_format=3)
    group = root.create_group(split, overwrite=True, attributes=attributes)
    for name, values in arrays.items():
        count, inner = len(values), values.shape[1:]
        shard = min(1024, 2**24 // int(np.prod(inner[-2:], initial=1)))
        # Scalars are one chunk; of images and maps each sample is one, so that a reader can take single samples.
        chunks = (1, *inner) if inner else (max(1, count),)
        array = group.create_array(
            name,
            shape=values.shape,
            dtype=values.dtype,
            chunks=chunks,
            shards=(max(1, shard), *inner) if inner else None,
            compressors=ZstdCodec(level=3, checksum=True),
            dimension_names=DIMENSIONS[name],
            attributes=_attributes(name, attributes),
        )
        if count:
            array[:] = values


def _attributes(name: str, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Per-array attributes; flag_values and flag_meanings as the CF conventions have them."""
    classes = attributes["class_table"]["names"]
    meanings = [*(text.replace(" ", "_") for text in classes), "not_labelled"]
    return {
        "image": {"long_name": "backscatter image", "value_range": attributes["value_range"]},
        "label": {
            "long_name": "class map",
            "flag_values": [*range(len(classes)), IGNORE],
            "flag_meanings": " ".join(meanings),
        },
        "fraction": {"long_name": "true class fractions, 255 is 1"},
        "group": {"long_name": "near-duplicate group, unique across splits"},
        "sensor": {"long_name": "sensor", "flag_meanings": " ".join(attributes["sensors"])},
    }[name]


def read_arrays(url: str, split: str) -> dict[str, np.ndarray]:
    """Every array of a split, decoded. Raises IntegrityError if they are damaged or missing."""
    where = storage.join(group_url(url, split), split)
    try:
        group = zarr.open_group(storage.zarr_store(group_url(url, split)), mode="r", path=split)
        # Whole arrays: indexing single samples of a sharded array is a hundred times slower.
        return {name: np.asarray(array[:]) for name, array in group.arrays()}
    # Codecs, zarr and storage each fail in their own way on damaged or missing bytes.
    except Exception as error:
        if type(error).__module__.split(".")[0] in ("botocore", "aiobotocore", "aiohttp") or isinstance(
            error, PermissionError | ConnectionError | TimeoutError
        ):  # the way there is broken, not what stands there
            raise StorageError(
                f"{where}: reading failed ({error}); check the credentials, the network and AWS_ENDPOINT_URL"
            ) from error
        raise IntegrityError(
            f"{where}: cannot be read ({type(error).__name__}: {error}); the corpus is damaged, remove it and run "
            "jobs/prepare.py again"
        ) from error


class TileCorpus:
    """A complete tile corpus; splits are read once, whole, and checked against the manifest's digest."""

    def __init__(self, url: str, manifest: TilesManifest):
        self.url, self.manifest = url, manifest
        self._read: dict[str, Split] = {}

    @classmethod
    def open(cls, url: str) -> TileCorpus:
        """Raises DataError if no complete corpus stands at ``url``."""
        where = storage.join(url, "manifest.json")
        try:
            return cls(url, TilesManifest.from_json(storage.read_json(where), where=where))
        except FileNotFoundError:
            raise DataError(
                f"{url}: no tile corpus (no manifest.json); run jobs/prepare.py first, or mend paths.tiles"
            ) from None

    def read(self, split: str) -> Split:
        """One of "train", "val", "unlabelled".

        Raises:
            DataError: for "test", which evaluation alone reads, and for unknown names.
            IntegrityError: stored bytes are not those that were written.
        """
        if split == TEST or split not in SPLITS:
            raise DataError(
                f"split {split!r} of {self.url}; expected one of train, val, unlabelled. Test is read by evaluation "
                "alone, through read_test"
            )
        return self._load(split)

    def _load(self, split: str) -> Split:
        if split in self._read:
            return self._read[split]
        where = storage.join(self.url, "samples.json")
        try:
            names = storage.read_json(where)[split]
        except (FileNotFoundError, KeyError, TypeError) as error:
            raise IntegrityError(f"{where}: {error}; the names of the samples are missing") from error
        arrays = read_arrays(self.url, split)
        found = split_digest(arrays, names)
        if found != self.manifest.split_digests[split]:
            raise IntegrityError(
                f"{storage.join(group_url(self.url, split), split)}: digest {found[:16]}; expected "
                f"{self.manifest.split_digests[split][:16]}. Bytes were changed or lost; remove the corpus and run "
                "jobs/prepare.py again"
            )
        check_images(arrays["image"], where=self.url, bands=len(self.manifest.bands))
        check_labels(arrays["label"], arrays["image"], len(self.manifest.class_table), where=self.url)
        fraction = arrays.get("fraction")
        self._read[split] = Split(
            images=arrays["image"],
            labels=arrays["label"],
            groups=arrays["group"],
            sensors=arrays["sensor"],
            names=names,
            fractions=None if fraction is None else soft_from_stored(fraction).numpy(),
        )
        return self._read[split]


def read_test(corpus: TileCorpus) -> Split:
    """The only road to the test split; evaluation alone takes it, once per frozen configuration."""
    return corpus._load(TEST)
