"""Scores as compact JSON: per-image sums in a few kilobytes, so that intervals can be drawn anew from a record."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from dakter.errors import IntegrityError
from dakter.evaluate.calibration import Reliability
from dakter.evaluate.scores import Scores

_ARRAYS = ("confusions", "proper", "proper_tempered")
_RELIABILITIES = ("reliability", "reliability_tempered")


def pack_array(values: np.ndarray) -> dict[str, Any]:
    """Type, shape and the little-endian bytes, deflated, as base64."""
    plain = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
    data = base64.b64encode(zlib.compress(plain.tobytes(), 9)).decode()
    return {"dtype": plain.dtype.str, "shape": list(values.shape), "data": data}


def unpack_array(packed: Mapping[str, Any]) -> np.ndarray:
    """Inverse of ``pack_array``.

    Raises:
        IntegrityError: it is no packed array, or bytes are missing.
    """
    try:
        values = np.frombuffer(zlib.decompress(base64.b64decode(packed["data"])), dtype=packed["dtype"])
        return values.reshape(packed["shape"]).astype(values.dtype.newbyteorder("="))
    except (KeyError, TypeError, ValueError, zlib.error) as error:
        raise IntegrityError(f"a packed array cannot be read ({error}); the record was altered or cut short") from error


def pack(scores: Scores) -> dict[str, Any]:
    """Counts as uint32, sums of losses as float32 (7 digits), reliability as float32."""
    packed: dict[str, Any] = {"temperature": scores.temperature}
    for name in _ARRAYS:
        values = getattr(scores, name)
        packed[name] = pack_array(values.astype(np.uint32 if name == "confusions" else np.float32))
    for name in _RELIABILITIES:
        table = getattr(scores, name)
        packed[name] = pack_array(np.stack([table.count, table.claimed, table.true]).astype(np.float32))
    return packed


def unpack(packed: Mapping[str, Any]) -> Scores:
    """Inverse of ``pack`` but for rounding. Raises IntegrityError if something is missing or altered."""
    try:
        arrays = {name: unpack_array(packed[name]) for name in (*_ARRAYS, *_RELIABILITIES)}
        temperature = float(packed["temperature"])
    except (KeyError, TypeError) as error:
        raise IntegrityError(f"packed scores lack {error}; the record was altered") from error
    return Scores(
        temperature,
        arrays["confusions"].astype(np.int64),
        arrays["proper"].astype(np.float64),
        arrays["proper_tempered"].astype(np.float64),
        Reliability(*arrays["reliability"].astype(np.float64)),
        Reliability(*arrays["reliability_tempered"].astype(np.float64)),
    )
