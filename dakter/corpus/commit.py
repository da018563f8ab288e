"""Writing one shard exactly once: objects create-if-absent, the commit record last.

What holds, whoever else writes: a committed shard's bytes are those of its record. The steps of a writer:

1. a commit record stands: nothing to do;
2. put each object only if absent. If one stands: equal, adopt it; else, while the shard is uncommitted, replace just
   the version that was seen (a writer that died, or one on another kind of device, left it);
3. put the commit record only if absent: of several writers one wins;
4. look again. If the objects are not those of the record that stands (a late twin replaced them between two looks),
   put back the bytes that the record describes: both twins hold them, and whoever comes last mends.

The store may fail at each step. A step that fails is done again (``storage.patiently``), which every one bears: puts
are conditional, and what is found standing is compared by its bytes, so a put that was carried out while its answer was
lost is recognised as one's own. "Something stands there" from a store where nothing stands is a failure like others.
When the tries are used up a StorageError leaves the shard uncommitted and harmless; write_shard again goes on from
there.

What no client can shut out: a replacement that the store carries out long after its sender gave up, over the very
version that a twin with other bytes (another kind of device) committed meanwhile. ``manifest.verify`` names it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from dakter import storage
from dakter.corpus.layout import ARRAYS, Layout
from dakter.corpus.pack import Packed, pack
from dakter.corpus.shard import Arrays, sha256
from dakter.errors import IntegrityError, StorageError

log = logging.getLogger("dakter.corpus")

_TRIES = 20  # looks at one object that others keep changing


@dataclass(frozen=True)
class Outcome:
    """What became of a shard: its commit record, and whether this call made it."""

    record: dict[str, Any]
    written: bool


@dataclass(frozen=True)
class _Held:
    """One object as this writer left it: its own bytes, the version that stood then, and what it may have replaced."""

    data: bytes
    tag: str
    replaced: tuple[bytes, ...] = ()


def read_commit(layout: Layout, shard: int) -> dict[str, Any] | None:
    """The commit record of a shard, or None; raises IntegrityError for one that belongs elsewhere."""
    try:
        record = layout.read_json(layout.commit_key(shard))
    except FileNotFoundError:
        return None
    check_record(layout, shard, record)
    return dict(record)


def check_record(layout: Layout, shard: int, record: Any) -> None:
    """Raise IntegrityError unless ``record`` is the commit record of this shard of this corpus."""
    where = layout.place(layout.commit_key(shard))
    expected = {"identity_digest": layout.digest, **_extent(layout, shard)}
    if not isinstance(record, dict) or set(record.get("objects", ())) != set(ARRAYS):
        raise IntegrityError(f"{where}: is no commit record; delete it and start jobs/generate.py again")
    for key, value in expected.items():
        if record.get(key) != value:
            raise IntegrityError(
                f"{where}: {key} is {record.get(key)!r}; expected {value!r}: the record belongs to another corpus or "
                "shard. Delete it and start jobs/generate.py again"
            )


def write_shard(
    layout: Layout,
    shard: int,
    content: Packed | Arrays,
    facts: Callable[[], Mapping[str, Any]] = dict,
) -> Outcome:
    """Store and commit one shard; harmless if others do the same at the same time or did so before.

    Args:
        content: as ``pack.make`` or ``shard.compute`` makes it.
        facts: asked for when the objects stand: timings, device, versions, into the record, not into any digest.

    Raises:
        StorageError: the store refused, after some tries.
        IntegrityError: a committed shard is damaged and this call could not mend it.
    """
    standing = read_commit(layout, shard)
    if standing:
        return Outcome(standing, written=False)
    level, per_shard = int(layout.identity["compression_level"]), layout.samples_per_shard
    packed = content if isinstance(content, Packed) else pack(content, level, per_shard)
    held = {name: _place(layout, shard, name, packed.objects[name]) for name in ARRAYS}
    record, written = _commit(layout, shard, _record(layout, shard, packed, facts()))
    for name in ARRAYS:
        _settle(layout, shard, name, record, held[name], packed.stored_sha256[name])
    return Outcome(record, written)


def set_aside(layout: Layout, shard: int, *, attempts: int, error: str, traceback: str) -> None:
    """Record in ``failed/`` that a shard was given up."""
    record = {**_extent(layout, shard), "attempts": attempts, "error": error}
    storage.put_json(layout.place(layout.failed_key(shard)), {**record, "traceback": traceback, "time": time.time()})


def _extent(layout: Layout, shard: int) -> dict[str, int]:
    return {"shard": shard, "first": shard * layout.samples_per_shard, "count": layout.size(shard)}


def _record(layout: Layout, shard: int, packed: Packed, facts: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "identity_digest": layout.digest,
        **_extent(layout, shard),
        "objects": {
            name: {
                "key": layout.key(name, shard),
                "bytes": len(packed.objects[name]),
                "stored_sha256": packed.stored_sha256[name],
                "decoded_sha256": packed.decoded_sha256[name],
            }
            for name in ARRAYS
        },
        "class_shares": packed.class_shares,
        "entropy_nats": packed.entropy_nats,
        "facts": dict(facts),
    }


def _place(layout: Layout, shard: int, name: str, data: bytes) -> _Held:
    key, replaced = layout.key(name, shard), list[bytes]()
    for _ in range(_TRIES):
        try:
            return _Held(data, layout.objects.create(key, data), tuple(replaced))
        except FileExistsError:
            pass
        try:
            standing, tag = layout.objects.get(key)
        except FileNotFoundError:  # removed between the two: nothing stands in the way now
            continue
        if standing == data or read_commit(layout, shard):
            return _Held(data, tag, tuple(replaced))  # adopted; or committed by now, then the record decides
        log.warning("shard %d: an uncommitted object with other bytes stands at %s; replaced", shard, key)
        replaced.append(standing)  # before the try: its answer may be lost
        layout.objects.replace(key, data, tag)
    raise StorageError(f"{layout.place(key)}: other writers kept replacing it; stop all but one of them")


def _commit(layout: Layout, shard: int, record: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """Put the record if none stands; returns the one that stands, and whether it is ours."""
    key, data = layout.commit_key(shard), storage.to_json_bytes(record)
    for _ in range(_TRIES):
        try:
            layout.objects.create(key, data)
            return record, True
        except FileExistsError:
            winner = read_commit(layout, shard)
        if winner is not None:
            return winner, storage.to_json_bytes(winner) == data  # our own put, if its answer was lost
    raise StorageError(f"{layout.place(key)}: others keep making and removing it; stop them")


def _settle(layout: Layout, shard: int, name: str, record: Mapping[str, Any], held: _Held, held_sha256: str) -> None:
    """See to it that the object is the one that the commit record describes."""
    key, wanted = layout.key(name, shard), record["objects"][name]["stored_sha256"]
    if held_sha256 == wanted and not held.replaced and _tag(layout, key) == held.tag:
        return
    ours = [data for data in (held.data, *held.replaced) if sha256(data) == wanted]
    for _ in range(_TRIES):
        try:
            standing, tag = layout.objects.get(key)
        except FileNotFoundError:
            standing, tag = b"", ""
        if sha256(standing) == wanted:
            return
        if not ours:  # whoever replaced it, or the winner, holds them and puts them back in a moment
            time.sleep(0.25)
            continue
        log.warning("shard %d: %s was replaced after its commit; put back", shard, key)
        _put_back(layout, key, ours[0], tag)
    raise IntegrityError(
        f"{layout.place(key)}: shard {shard} is committed with sha256 {wanted}, but other bytes stand there. Delete "
        f"{layout.commit_key(shard)} and start jobs/generate.py again to make just this shard anew"
    )


def _tag(layout: Layout, key: str) -> str | None:
    try:
        return layout.objects.tag(key)
    except FileNotFoundError:
        return None


def _put_back(layout: Layout, key: str, data: bytes, tag: str) -> None:
    if tag:
        layout.objects.replace(key, data, tag)
        return
    with suppress(FileExistsError):
        layout.objects.create(key, data)
