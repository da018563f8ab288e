"""Shard bytes are zarr's own, and are read back exactly or not at all."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from dakter.corpus import codec
from dakter.errors import IntegrityError

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
