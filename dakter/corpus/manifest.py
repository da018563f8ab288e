"""The whole of a corpus, from storage alone: whether its bytes are right, its manifest and digest."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from dakter import storage
from dakter.config import digest_json
from dakter.corpus import codec
from dakter.corpus.commit import check_record, read_commit
from dakter.corpus.layout import ARRAYS, Layout
from dakter.corpus.shard import sha256
from dakter.corpus.wording import is_labelled
from dakter.errors import IntegrityError, listing
from dakter.progress import Progress

log = logging.getLogger("dakter.corpus")
T = TypeVar("T")

# Readers at a time: for whole shards as many as fit in memory (100 MB decoded each), for records many.
SHARDS_AT_ONCE, RECORDS_AT_ONCE = 4, 16
_HANDFUL = 16


def read_manifest(layout: Layout) -> dict[str, Any] | None:
    """``manifest.json``, or None before the corpus is finalised; raises IntegrityError if it belongs elsewhere."""
    where = layout.place("manifest.json")
    try:
        manifest = layout.read_json("manifest.json")
    except FileNotFoundError:
        return None
    if not isinstance(manifest, dict) or manifest.get("identity_digest") != layout.digest:
        raise IntegrityError(f"{where}: is not the manifest of this corpus; delete it and start jobs/generate.py again")
    return manifest


def records(layout: Layout, shards: Sequence[int]) -> list[dict[str, Any]]:
    """The commit records of ``shards``, in their order; raises IntegrityError if one is gone or belongs elsewhere."""

    def read(shard: int) -> dict[str, Any]:
        record = read_commit(layout, shard)
        if record is None:
            raise IntegrityError(f"{layout.place(layout.commit_key(shard))}: gone; shard {shard} is not committed")
        return record

    return list(each(shards, read, RECORDS_AT_ONCE))


def ranges(commit_records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the digest is over: shard, sample range and decoded hashes, in the order of the samples."""
    return [
        {
            "shard": record["shard"],
            "first": record["first"],
            "count": record["count"],
            "decoded_sha256": {name: record["objects"][name]["decoded_sha256"] for name in ARRAYS},
        }
        for record in commit_records
    ]


def finalise(layout: Layout) -> dict[str, Any]:
    """Read every committed shard back, compare it with its record, write and return the manifest.

    Raises:
        IntegrityError: names the shards whose bytes are not those of their record; no manifest is written then.
    """
    shards = layout.committed()
    found = records(layout, shards)
    layout.grow(max(shards, default=-1) + 1)
    layout.check_documents()
    progress = Progress(log, "finalise", len(found), "shards")
    faults = []
    for broken in each(found, lambda record: _faults(layout, record, deep=True), SHARDS_AT_ONCE):
        faults += broken
        progress.advance()
    if faults:
        raise IntegrityError(
            f"{layout.url}: not finalised, {len(faults)} faults:\n{listing(list(map(describe, faults)))}"
        )
    rows = ranges(found)
    counts = [row["count"] for row in rows]
    manifest = {
        "identity_digest": layout.digest,
        "digest": digest_json(rows),
        "num_samples": sum(counts),
        "num_shards": len(rows),
        "bytes": sum(record["objects"][name]["bytes"] for record in found for name in ARRAYS),
        "class_shares": _mean([record["class_shares"] for record in found], counts).tolist() if found else [],
        "entropy_nats": float(_mean([record["entropy_nats"] for record in found], counts)) if found else 0.0,
        "ranges": rows,
    }
    storage.put_json(layout.place("manifest.json"), manifest)
    return manifest


def _mean(values: list[Any], counts: list[int]) -> np.ndarray:
    """Over samples; exactly the mean over shards where these are equally large."""
    if len(set(counts)) == 1:
        return np.mean(values, axis=0)
    return np.average(values, axis=0, weights=counts)


def verify(layout: Layout, *, deep: bool = True) -> dict[str, Any]:
    """Hash every byte of every committed shard anew, and look for what does not belong.

    Args:
        deep: decode the arrays and hash them too, which finds what was stored wrong from the start.

    Returns:
        Counts, ``digest`` of what was read, ``faults`` (each with kind, shard, key, detail): ``missing``,
        ``truncated``, ``altered``, ``duplicated``, ``foreign``, ``manifest``; and ``uncommitted``, keys of objects
        whose shard has no commit record: work in hand or given up, harmless.
    """
    layout.check_documents()
    committed = layout.committed()
    faults: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []

    def look(shard: int) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
        try:
            record = layout.read_json(layout.commit_key(shard))
            check_record(layout, shard, record)
        except IntegrityError as error:  # one broken record must not hide what else is wrong
            return None, [_fault("foreign", shard, layout.commit_key(shard), str(error))]
        return record, _faults(layout, record, deep)

    progress = Progress(log, "verify", len(committed), "shards")
    for record, broken in each(committed, look, SHARDS_AT_ONCE):
        faults += broken
        if record is not None:
            found.append(record)
        progress.advance()
    # Given images may repeat, so there a shard is a duplicate only if its labels, each of its own noise, repeat too.
    faults += _duplicates(found, ARRAYS if is_labelled(layout.identity) else ("image",))
    strangers, uncommitted = _strangers(layout, set(committed))
    faults += strangers
    rows, manifest = ranges(found), read_manifest(layout)
    if manifest is not None:
        stands = {row["shard"]: row for row in rows}
        gone = [row["shard"] for row in manifest["ranges"] if stands.get(row["shard"]) != row]
        detail = "the manifest lists it otherwise than its commit record, or the record is gone"
        faults += [_fault("manifest", shard, "manifest.json", detail) for shard in gone]
        if digest_json(manifest["ranges"]) != manifest["digest"]:
            faults.append(_fault("manifest", None, "manifest.json", "its digest is not that of its ranges"))
    return {
        "url": layout.url,
        "deep": deep,
        "num_shards": len(committed),
        "num_samples": sum(map(layout.size, committed)),
        "digest": digest_json(rows),
        "faults": faults,
        "uncommitted": uncommitted,
    }


def describe(fault: dict[str, Any]) -> str:
    """One line for people."""
    where = f"shard {fault['shard']} " if fault["shard"] is not None else ""
    return f"{fault['kind']}: {where}{fault['key']}: {fault['detail']}"


def _fault(kind: str, shard: int | None, key: str, detail: str) -> dict[str, Any]:
    return {"kind": kind, "shard": shard, "key": key, "detail": detail}


def _faults(layout: Layout, record: dict[str, Any], deep: bool) -> list[dict[str, Any]]:
    faults = []
    for name, shape in layout.content.shapes(1).items():
        entry, shard, key = record["objects"][name], record["shard"], layout.key(name, record["shard"])
        try:
            data = layout.objects.view(key)
        except FileNotFoundError:
            faults.append(_fault("missing", shard, key, "committed, but the object is not there"))
            continue
        if len(data) != entry["bytes"]:
            faults.append(_fault("truncated", shard, key, f"{len(data)} bytes; the record says {entry['bytes']}"))
            continue
        if sha256(data) != entry["stored_sha256"]:
            faults.append(_fault("altered", shard, key, "the stored bytes are not those of the record"))
            continue
        if not deep:
            continue
        try:
            samples = codec.decode(data, shape[1:], layout.samples_per_shard, where=layout.place(key))
        except IntegrityError as error:
            faults.append(_fault("altered", shard, key, str(error)))
            continue
        if sha256(samples[: layout.size(shard)]) != entry["decoded_sha256"]:
            faults.append(_fault("altered", shard, key, "the decoded samples are not those of the record"))
    return faults


def repair(layout: Layout, faults: Iterable[dict[str, Any]]) -> list[int]:
    """Take back the commit of every shard at fault, so that the next start makes just those again.

    Objects are left where they are: a writer replaces those of an uncommitted shard. A duplicate's original is not
    touched. Objects that are no part of the layout are left too: they may be somebody's.

    Returns:
        The shards whose commits were taken back or were gone, ascending.
    """
    broken = sorted({int(fault["shard"]) for fault in faults if fault["shard"] is not None})
    for shard in broken:
        storage.delete(layout.place(layout.commit_key(shard)))
    return broken


def _duplicates(found: list[dict[str, Any]], by: Sequence[str]) -> list[dict[str, Any]]:
    first: dict[tuple[str, ...], int] = {}
    faults = []
    for record in found:
        shard, decoded = record["shard"], tuple(record["objects"][name]["decoded_sha256"] for name in by)
        if decoded in first:
            key = record["objects"]["image"]["key"]
            faults.append(_fault("duplicated", shard, key, f"the images are those of shard {first[decoded]}"))
        first.setdefault(decoded, shard)
    return faults


def _strangers(layout: Layout, committed: set[int]) -> tuple[list[dict[str, Any]], list[str]]:
    """Objects that no writer of this corpus puts, and objects of shards without a record."""
    documents = {"zarr.json", *(f"{name}/zarr.json" for name in ARRAYS)}
    pattern = re.compile(rf"({'|'.join(ARRAYS)})/c\.(\d+)\.0\.0\.0")
    faults, uncommitted = [], []
    for key in layout.objects.keys("data.zarr"):
        match = pattern.fullmatch(key)
        if key in documents or (match and int(match[2]) in committed):
            continue
        if match:
            uncommitted.append(f"data.zarr/{key}")
        else:
            faults.append(_fault("foreign", None, f"data.zarr/{key}", "no part of this layout"))
    for name in layout.objects.keys("commits"):
        if not re.fullmatch(r"\d{8}\.json", name):
            faults.append(_fault("foreign", None, f"commits/{name}", "no part of this layout"))
    return faults, uncommitted


def each(items: Sequence[Any], what: Callable[[Any], T], at_once: int) -> Iterator[T]:
    """``what`` of every item, done by ``at_once`` threads, in the order of the items.

    A thread takes some items at a time: with small objects, to hand each over takes as long as to read and hash it.
    """
    size = max(1, min(_HANDFUL, len(items) // (4 * at_once)))
    handfuls = (items[start : start + size] for start in range(0, len(items), size))
    with ThreadPoolExecutor(at_once) as pool:
        for found in pool.map(lambda handful: list(map(what, handful)), handfuls):
            yield from found
