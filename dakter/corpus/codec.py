"""One shard of one array, to bytes and back: a zarr v3 shard of one-sample chunks, zstd with checksum.

Writing goes through zarr itself, into memory, so that the bytes are zarr's own. Reading does not: indexing a sharded
array in zarr 3.1.6 decodes chunk after chunk in Python, 10 to 60 times slower than what stands here.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import google_crc32c
import numpy as np
import zarr
import zstandard
from zarr.codecs import ZstdCodec
from zarr.storage import MemoryStore

from dakter.errors import IntegrityError

# Axis names of the two arrays of a corpus.
DIMENSIONS = {"image": ("sample", "band", "y", "x"), "soft_label": ("sample", "class", "y", "x")}
_EMPTY = 2**64 - 1  # offset and length of a chunk that holds the fill value alone
_threads = threading.local()


def array_document(
    name: str, shape: tuple[int, ...], per_shard: int, level: int, attributes: Mapping[str, Any]
) -> bytes:
    """The ``zarr.json`` of a preallocated array: uint8, chunks of one sample, shards of ``per_shard`` samples."""
    store = MemoryStore()
    _create(store, name, shape, per_shard, level, attributes)
    return bytes(store._store_dict["zarr.json"].to_bytes())


def _create(
    store: MemoryStore, name: str, shape: tuple[int, ...], per_shard: int, level: int, attributes: Mapping[str, Any]
) -> zarr.Array:
    return zarr.create_array(
        store,
        shape=shape,
        chunks=(1, *shape[1:]),
        shards=(per_shard, *shape[1:]),
        dtype=np.uint8,
        compressors=ZstdCodec(level=level, checksum=True),
        fill_value=0,
        dimension_names=DIMENSIONS[name],
        attributes=dict(attributes),
        # A shard of zeros is written like any other: whether an object is there must not depend on its content.
        config={"write_empty_chunks": True},
    )


def encode(name: str, array: np.ndarray, level: int) -> bytes:
    """A whole shard, uint8 ``(samples, ., H, W)``, as the bytes of its one object."""
    store = MemoryStore()
    _create(store, name, array.shape, array.shape[0], level, {})[:] = array
    return bytes(store._store_dict["c/0/0/0/0"].to_bytes())


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
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
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
    data: bytes,
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
    tail = 16 * per_shard + 4
    if len(data) < tail:
        raise IntegrityError(f"{where}: {len(data)} bytes; a shard of {per_shard} samples has an index of {tail} alone")
    index = data[-tail:-4]
    if google_crc32c.value(index) != int.from_bytes(data[-4:], "little"):
        raise IntegrityError(f"{where}: the crc32c of the shard index is wrong; the object was altered or cut short")
    spans = np.frombuffer(index, "<u8").reshape(per_shard, 2)
    out = np.empty((per_shard, *sample_shape), np.uint8) if out is None else out
    view, rows = memoryview(data), out.reshape(per_shard, -1)

    def rows_of(start: int, stop: int) -> None:
        for row in range(start, stop):
            offset, length = (int(number) for number in spans[row])
            if offset == _EMPTY:
                rows[row] = 0
                continue
            if offset + length > len(data) - tail:
                raise IntegrityError(f"{where}: sample {row} lies at {offset}+{length}, beyond the data")
            rows[row] = np.frombuffer(_inflate(view[offset : offset + length], rows.shape[1], where, row), np.uint8)

    step = -(-per_shard // 8) if pool else per_shard
    starts = range(0, per_shard, step)
    ends = [min(start + step, per_shard) for start in starts]
    list((pool.map if pool else map)(rows_of, starts, ends))
    return out


def _inflate(chunk: memoryview, size: int, where: str, row: int) -> bytes:
    if not hasattr(_threads, "zstd"):
        _threads.zstd = zstandard.ZstdDecompressor()
    try:
        plain = bytes(_threads.zstd.decompress(chunk, max_output_size=size))
    except zstandard.ZstdError as error:
        raise IntegrityError(f"{where}: sample {row} does not decompress ({error}); the object was altered") from error
    if len(plain) != size:
        raise IntegrityError(f"{where}: sample {row} holds {len(plain)} bytes; expected {size}")
    return plain
