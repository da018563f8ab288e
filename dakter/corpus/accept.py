"""Accept-lists: the samples of a corpus that training shall see, for instance those that curation kept.

A list is sample indices, or a JSON document: the bare list, or an object with the list under ``indices``. If the object
also has ``identity_digest``, it must be that of the corpus.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from dakter import storage
from dakter.corpus.layout import Layout
from dakter.corpus.order import Piece
from dakter.errors import DataError, IntegrityError, listing

# Sample indices, or the path or URL of a JSON document with them.
Accept = str | Iterable[int]


def accepted(accept: Accept | None, shards: Sequence[int], samples_per_shard: int, layout: Layout) -> list[Piece]:
    """(shard, ascending accepted rows of it), for each of ``shards`` that has any; all rows for None.

    Raises:
        DataError: not a list of indices, or one occurs twice.
        IntegrityError: an index is not among ``shards``, or the document belongs to another corpus.
    """
    if accept is None:
        everything = np.arange(samples_per_shard)
        return [(shard, everything[: layout.size(shard)]) for shard in shards]
    where = f"accept-list {accept}" if isinstance(accept, str) else "accept-list"
    found = np.asarray(_document(accept, layout, where) if isinstance(accept, str) else list(accept))
    if found.ndim != 1 or (found.size and found.dtype.kind not in "iu"):
        raise DataError(f"{where}: {found.dtype} {found.shape}; expected a list of sample indices")
    indices, counts = np.unique(found.astype(np.int64), return_counts=True)
    if (twice := indices[counts > 1]).size:
        raise DataError(f"{where}: {len(twice)} indices occur more than once, e.g. {twice[:5].tolist()}")
    where_S, row_S = np.divmod(indices, samples_per_shard)
    there = np.isin(where_S, shards) & (indices < layout.samples_before(max(shards, default=-1) + 1))
    if (missing := indices[~there]).size:
        raise IntegrityError(
            f"{layout.url}: the {where} has {len(missing)} indices that are not committed:\n"
            + listing([f"sample {index}" for index in missing.tolist()], most=5)
            + "\nMake them with jobs/generate.py, or take them out"
        )
    present, first = np.unique(where_S, return_index=True)
    rows = dict(zip(present.tolist(), np.split(row_S, first[1:]), strict=True)) if present.size else {}
    return [(shard, rows[shard]) for shard in shards if shard in rows]


def _document(url: str, layout: Layout, where: str) -> Any:
    document = storage.read_json(url)
    if not isinstance(document, dict):
        return document
    if "indices" not in document:
        raise DataError(f"{where}: has no entry 'indices'; expected a list, or an object with one under 'indices'")
    if document.get("identity_digest", layout.digest) != layout.digest:
        raise IntegrityError(
            f"{where}: its identity_digest is {document['identity_digest']!r}; {layout.url} has {layout.digest!r}: it "
            "was made for another corpus"
        )
    return document["indices"]
