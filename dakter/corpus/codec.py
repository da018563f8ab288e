"""One shard of one array, to bytes and back: a zarr v3 shard of one-sample chunks, zstd with checksum.

Neither way goes through zarr's indexing, which in 3.1.6 handles one chunk after the other in Python: writing a shard
that way costs 2 ms a sample beside the compression itself, reading 10 to 60 times what stands here. The bytes are
zarr's own all the same: the same numcodecs compressor and the same layout, and the tests hold them against zarr's.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import google_crc32c
import numpy as np
import zarr
import zstandard
from numcodecs import zstd
from zarr.codecs import ZstdCodec
from zarr.storage import MemoryStore

from dakter.errors import DataError, IntegrityError

# Axis names of the two arrays of a corpus.
DIMENSIONS = {"image": ("sample", "band", "y", "x"), "soft_label": ("sample", "class", "y", "x")}
_EMPTY = 2**64 - 1  # offset and length of a chunk that holds the fill value alone
# A shard is shared by threads in so many parts at most, each of so many decoded bytes at least: smaller ones would cost
# more in handing the interpreter's lock around than the threads gain.
_PARTS, _PART_BYTES = 16, 2**20
_threads = threading.local()


def array_document(
    name: str, shape: tuple[int, ...], per_shard: int, level: int, attributes: Mapping[str, Any]
) -> bytes:
    """The ``zarr.json`` of a preallocated array: uint8, chunks of one sample, shards of ``per_shard`` samples."""
    store = MemoryStore()
    zarr.create_array(
        store,
        shape=shape,
        chunks=(1, *shape[1:]),
        shards=(per_shard, *shape[1:]),
        dtype=np.uint8,
        compressors=ZstdCodec(level=level, checksum=True),
        fill_value=0,
        chunk_key_encoding={"name": "default", "separator": "."},
        dimension_names=DIMENSIONS[name],
        attributes=dict(attributes),
    )
    return bytes(store._store_dict["zarr.json"].to_bytes())


class Encoder:
    """Makes the bytes of one shard object, sample by sample.

    A shard of zeros is written like any other: whether an object is there must not depend on its content.

    Args:
        name: which array, for the error.
        level: zstd level.
        pool: threads that share the work; the bytes are the same.
        per_shard: samples of a whole shard; the object of a shorter one has empty places for the rest.
    """

    def __init__(self, name: str, level: int, pool: ThreadPoolExecutor | None = None, per_shard: int = 0):
        self._name, self._level, self._pool, self._per_shard = name, level, pool, per_shard
        self._chunks: list[bytes] = []
        self._digest = hashlib.sha256()

    def begin(self, array: np.ndarray) -> Callable[[], None]:
        """Begin to compress the next samples, uint8 ``(n, ., H, W)``; what is returned waits for it. One at a time.

        Raises:
            DataError: another type or number of axes, or no sample.
        """
        if array.dtype != np.uint8 or array.ndim != len(DIMENSIONS[self._name]) or not array.size:
            raise DataError(
                f"{self._name}: {array.dtype} {array.shape}; expected uint8 samples along {DIMENSIONS[self._name]}"
            )
        rows = np.ascontiguousarray(array).reshape(len(array), -1)
        level = self._level
        chunks = (self._pool.map if self._pool else map)(lambda row: zstd.compress(row, level, True), rows)

        def wait() -> None:
            for chunk in chunks:
                self._digest.update(chunk)
                self._chunks.append(chunk)

        return wait

    def finish(self) -> bytes:
        """The object: all samples so far and their index; raises DataError if there are none."""
        if not self._chunks:
            raise DataError(f"{self._name}: no sample to encode")
        lengths = np.array([len(chunk) for chunk in self._chunks], "<u8")
        index = np.stack([lengths.cumsum(dtype="<u8") - lengths, lengths], axis=1).tobytes()
        index += _EMPTY.to_bytes(8, "little") * 2 * (self._per_shard - len(lengths))
        tail = index + google_crc32c.value(index).to_bytes(4, "little")
        self._digest.update(tail)
        return b"".join([*self._chunks, tail])

    @property
    def sha256(self) -> str:
        """Hex digest of the object; after ``finish``."""
        return self._digest.hexdigest()


def encode(name: str, array: np.ndarray, level: int, *, pool: ThreadPoolExecutor | None = None) -> bytes:
    """A whole shard, uint8 ``(samples, ., H, W)``, as the bytes of its one object; arguments as of ``Encoder``."""
    encoder = Encoder(name, level, pool)
    encoder.begin(array)()
    return encoder.finish()


def check_document(document: Mapping[str, Any], name: str, sample_shape: tuple[int, ...], per_shard: int) -> None:
    """Refuse an array whose ``zarr.json`` is not the layout that ``decode`` reads.

    Raises:
        IntegrityError: names the first entry that differs, its value and what was expected.
    """
    expected = {
        "zarr_format": 3,
        "node_type": "array",
        "data_type": "uint8",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [per_shard, *sample_shape]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "dimension_names": list(DIMENSIONS[name]),
    }
    for key, value in expected.items():
        if document.get(key) != value:
            raise IntegrityError(f"array {name}: {key} in zarr.json is {document.get(key)!r}; expected {value!r}")
    codecs = document.get("codecs")
    level = _level(codecs)
    chain = [
        {
            "name": "sharding_indexed",
            "configuration": {
                "chunk_shape": [1, *sample_shape],
                "codecs": [{"name": "bytes"}, {"name": "zstd", "configuration": {"level": level, "checksum": True}}],
                "index_codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
                "index_location": "end",
            },
        }
    ]
    if codecs != chain:
        raise IntegrityError(f"array {name}: the codecs in zarr.json are {codecs!r}; expected {chain!r}")


def _level(codecs: Any) -> Any:
    try:
        return codecs[0]["configuration"]["codecs"][1]["configuration"]["level"]
    except (KeyError, IndexError, TypeError):
        return None


def decode(
    data: bytes | memoryview,
    sample_shape: tuple[int, ...],
    per_shard: int,
    *,
    where: str,
    out: np.ndarray | None = None,
    pool: ThreadPoolExecutor | None = None,
) -> np.ndarray:
    """The samples of a shard object, uint8 ``(per_shard, *sample_shape)``.

    Args:
        data: the whole object.
        where: names the object in errors.
        out: where to put the samples (C-contiguous); else a new array.
        pool: threads that share the work.

    Raises:
        IntegrityError: cut short, the crc32c of the index or a zstd checksum is wrong.
    """
    out = np.empty((per_shard, *sample_shape), np.uint8) if out is None else out
    if pool is None:
        _inflate_rows(data, _spans(data, per_shard, where), list(enumerate(out)), where)
    else:
        for part in decode_into(data, list(out), where=where, pool=pool):
            part.result()
    return out


def decode_into(
    data: bytes | memoryview,
    places: Sequence[np.ndarray | None],
    *,
    where: str,
    pool: ThreadPoolExecutor,
    hashed: bool = False,
) -> list[Future[None]]:
    """Begin to decode a shard object, sample ``i`` straight into ``places[i]``; None: it is not wanted.

    Args:
        data: the whole object.
        places: one uint8 array ``sample_shape`` (C-contiguous) or None for each sample of the shard.
        where: names the object in errors.
        hashed: ``data`` was compared with its sha256: the checksums of its chunks, a tenth of the work, are left out.

    Returns:
        The parts of the work; all is in place when each has a result. They raise IntegrityError as ``decode`` does.

    Raises:
        IntegrityError: cut short, or the crc32c of the index is wrong.
    """
    spans = _spans(data, len(places), where)
    wanted = [(row, place) for row, place in enumerate(places) if place is not None]
    least = -(-_PART_BYTES // wanted[0][1].nbytes) if wanted else 1
    step = max(least, -(-len(wanted) // _PARTS))
    parts = [wanted[start : start + step] for start in range(0, len(wanted), step)]
    return [pool.submit(_inflate_rows, data, spans, part, where, hashed) for part in parts]


def _spans(data: bytes | memoryview, per_shard: int, where: str) -> list[list[int]]:
    """Offset and length of each sample's chunk."""
    tail = 16 * per_shard + 4
    if len(data) < tail:
        raise IntegrityError(f"{where}: {len(data)} bytes; a shard of {per_shard} samples has an index of {tail} alone")
    index = bytes(data[-tail:-4])
    if google_crc32c.value(index) != int.from_bytes(data[-4:], "little"):
        raise IntegrityError(f"{where}: the crc32c of the shard index is wrong; the object was altered or cut short")
    spans: list[list[int]] = np.frombuffer(index, "<u8").reshape(per_shard, 2).tolist()
    for row, (offset, length) in enumerate(spans):
        if offset != _EMPTY and offset + length > len(data) - tail:
            raise IntegrityError(f"{where}: sample {row} lies at {offset}+{length}, beyond the data")
    return spans


def _inflate_rows(
    data: bytes | memoryview,
    spans: list[list[int]],
    wanted: Sequence[tuple[int, np.ndarray]],
    where: str,
    hashed: bool = False,
) -> None:
    if not hasattr(_threads, "zstd"):  # one a thread: making its context for each chunk would cost a fifth more
        _threads.zstd = zstandard.ZstdDecompressor()
    view = memoryview(data)
    for row, place in wanted:
        offset, length = spans[row]
        if offset == _EMPTY:
            place[...] = 0
            continue
        try:
            # Into a buffer that takes the whole frame zstd writes at once, without the copy that decompress() makes.
            chunk = view[offset : offset + length]
            reader = _threads.zstd.stream_reader(_without_checksum(chunk) if hashed else chunk)
            size = reader.readinto(place)
            more = reader.read(1)
        except zstandard.ZstdError as error:
            raise IntegrityError(
                f"{where}: sample {row} does not decompress ({error}); the object was altered"
            ) from error
        if size != place.nbytes or more:
            raise IntegrityError(f"{where}: sample {row} does not hold {place.nbytes} bytes; the object was altered")


def _without_checksum(chunk: memoryview) -> memoryview:
    """A zstd frame less its checksum: bit 2 of its descriptor, byte 4, tells whether one ends it (RFC 8878, 3.1.1)."""
    if len(chunk) < 9 or not chunk[4] & 4:
        return chunk
    if len(getattr(_threads, "frame", b"")) < len(chunk):
        _threads.frame = memoryview(bytearray(2 * len(chunk)))
    frame: memoryview = _threads.frame[: len(chunk) - 4]
    frame[:] = chunk[:-4]
    frame[4] &= ~4 & 0xFF
    return frame
