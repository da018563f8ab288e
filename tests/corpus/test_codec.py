"""Shard bytes are zarr's own, and are read back exactly or not at all."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import zarr
from zarr.codecs import ZstdCodec
from zarr.storage import MemoryStore

from dakter.corpus import codec
from dakter.errors import DataError, IntegrityError

SHAPE = (5, 8, 8)


@pytest.fixture
def array() -> np.ndarray:
    array = np.random.default_rng(0).integers(0, 30, (12, *SHAPE)).astype(np.uint8)
    array[3] = 0  # a sample of nothing but the fill value
    return array


def test_decode_returns_what_was_encoded(array: np.ndarray) -> None:
    data = codec.encode("soft_label", array, 3)
    assert np.array_equal(codec.decode(data, SHAPE, 12, where="x"), array)
    out = np.zeros_like(array)
    with ThreadPoolExecutor(3) as pool:
        assert codec.decode(data, SHAPE, 12, where="x", out=out, pool=pool) is out
    assert np.array_equal(out, array)


def test_same_samples_give_same_bytes_and_zeros_are_written(array: np.ndarray) -> None:
    assert codec.encode("soft_label", array, 3) == codec.encode("soft_label", array.copy(), 3)
    nothing = codec.encode("image", np.zeros((4, 1, 8, 8), np.uint8), 3)
    assert np.array_equal(codec.decode(nothing, (1, 8, 8), 4, where="x"), np.zeros((4, 1, 8, 8)))


def zarrs_own(array: np.ndarray, level: int) -> bytes:
    """The object that zarr writes for one whole shard of one-sample chunks."""
    store = MemoryStore()
    written = zarr.create_array(
        store,
        shape=array.shape,
        chunks=(1, *array.shape[1:]),
        shards=array.shape,
        dtype=np.uint8,
        compressors=ZstdCodec(level=level, checksum=True),
        fill_value=0,
        config={"write_empty_chunks": True},
    )
    written[:] = array
    return bytes(store._store_dict["c/0/0/0/0"].to_bytes())


@pytest.mark.parametrize("samples", [1, 3, 8, 37])
@pytest.mark.parametrize("level", [1, 3, 9])
def test_the_bytes_are_zarrs_own(samples: int, level: int) -> None:
    array = np.random.default_rng(samples).integers(0, 30, (samples, *SHAPE)).astype(np.uint8)
    array[samples // 2] = 7  # a constant sample
    array[samples // 3] = 0
    assert codec.encode("soft_label", array, level) == zarrs_own(array, level)
    with ThreadPoolExecutor(3) as pool:
        assert codec.encode("soft_label", array, level, pool=pool) == zarrs_own(array, level)
    nothing = np.zeros_like(array)
    assert codec.encode("soft_label", nothing, level) == zarrs_own(nothing, level)
    assert codec.encode("image", array[:, :1], level) == zarrs_own(array[:, :1], level)  # not contiguous


def test_other_arrays_are_not_encoded(array: np.ndarray) -> None:
    for wrong in (array.astype(np.uint16), array[0], array[:0]):
        with pytest.raises(DataError, match=r"soft_label: .*; expected uint8 samples along"):
            codec.encode("soft_label", wrong, 3)


def test_only_what_is_wanted_is_decoded(array: np.ndarray) -> None:
    data = codec.encode("soft_label", array, 3)
    out = np.full((4, *SHAPE), 99, np.uint8)
    places: list[np.ndarray | None] = [None] * 12
    places[3], places[7] = out[2], out[0]
    with ThreadPoolExecutor(2) as pool:
        for part in codec.decode_into(data, places, where="x", pool=pool):
            part.result()
        assert codec.decode_into(data, [None] * 12, where="x", pool=pool) == []
    assert np.array_equal(out[2], array[3])
    assert np.array_equal(out[0], array[7])
    assert (out[[1, 3]] == 99).all()


def test_of_hashed_bytes_the_checksums_alone_are_left_out(array: np.ndarray) -> None:
    data = bytearray(codec.encode("soft_label", array, 3))
    first = int.from_bytes(data[-(16 * 12 + 4) :][:16][8:], "little")  # length of the first chunk
    out = np.empty_like(array)
    with ThreadPoolExecutor(2) as pool:

        def decode(hashed: bool) -> None:
            for part in codec.decode_into(bytes(data), list(out), where="x", pool=pool, hashed=hashed):
                part.result()

        decode(hashed=True)
        assert np.array_equal(out, array)
        data[first - 1] ^= 1  # in the checksum of the first chunk
        decode(hashed=True)
        assert np.array_equal(out, array)
        with pytest.raises(IntegrityError, match="sample 0 does not decompress"):
            decode(hashed=False)
        data[first - 5] ^= 0xFF  # in its last block
        del data[0]  # and everything else
        with pytest.raises(IntegrityError):
            decode(hashed=True)


def test_chunks_of_another_size_are_noticed(array: np.ndarray) -> None:
    data = codec.encode("soft_label", array, 3)
    for shape in ((5, 8, 4), (5, 8, 16)):
        with pytest.raises(IntegrityError, match="sample 0 does not hold"):
            codec.decode(data, shape, 12, where="x")


@pytest.mark.parametrize("where", [0, 40, -1, -30])
def test_any_altered_byte_is_noticed(array: np.ndarray, where: int) -> None:
    data = bytearray(codec.encode("soft_label", array, 3))
    data[where] ^= 0x10
    with pytest.raises(IntegrityError, match="the-object"):
        codec.decode(bytes(data), SHAPE, 12, where="the-object")


def test_a_cut_object_is_noticed(array: np.ndarray) -> None:
    data = codec.encode("soft_label", array, 3)
    for cut in (data[:-1], data[1:], data[:100], b""):
        with pytest.raises(IntegrityError):
            codec.decode(cut, SHAPE, 12, where="x")


def test_another_layout_is_refused() -> None:
    import json

    document = json.loads(codec.array_document("image", (0, 1, 8, 8), 16, 3, {}))
    codec.check_document(document, "image", (1, 8, 8), 16)
    with pytest.raises(IntegrityError, match="chunk_grid"):
        codec.check_document(document, "image", (1, 8, 8), 32)
    document["codecs"][0]["configuration"]["codecs"][1]["configuration"]["checksum"] = False
    with pytest.raises(IntegrityError, match="codecs"):
        codec.check_document(document, "image", (1, 8, 8), 16)
