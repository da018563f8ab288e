"""Whether the files of a source are still those that its tiles were made from.

Beside the tiles stands ``source.json`` with the size of every file used, so that the same command after a mask was
mended, or ``classes.yaml``, does not go on with the old tiles. Tiles made before it was written are taken as they are.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping

from dakter import storage
from dakter.data.catalogue import Catalogue
from dakter.data.source import DataConfig, catalogue
from dakter.errors import ConflictError, DakterError, listing

log = logging.getLogger("dakter.data")

RECORD = "source.json"
_TABLE = "classes.yaml"


def put_record(url: str, offer: Catalogue, data: DataConfig) -> None:
    """Write what the tiles at ``url`` are made from; nothing where that is no files."""
    if found := _files(offer, data):
        storage.put_json(storage.join(url, RECORD), found)


def refuse_changed(url: str, data: DataConfig) -> None:
    """Compare the source, where it can be read, with the record beside the complete tiles at ``url``.

    Raises:
        ConflictError: names files that were added, removed or changed.
    """
    where = storage.join(url, RECORD)
    if data.root is None or not storage.exists(where):
        return
    try:
        now = _files(catalogue(data), data)
    except DakterError as error:
        log.warning("%s: whether it changed since its tiles were made cannot be told: %s", data.root, error)
        return
    if not now:
        log.warning("%s: nothing is there any more; its tiles are taken as they stand", data.root)
        return
    if different := _differences(storage.read_json(where), now):
        raise ConflictError(
            f"{url}: tiles stand here, and {len(different)} files of {data.root} changed since; remove the tiles, "
            "choose another place (--out or --paths.tiles), or leave out --data.root to take them as they are:\n"
            f"{listing(different)}"
        )


def _files(offer: Catalogue, data: DataConfig) -> dict[str, int | str]:
    """Name below its root -> bytes, of every file used; of ``classes.yaml`` its digest, since a word may change."""
    wanted = {url for entry in offer.entries for url in (entry.image, entry.label) if url}
    found: dict[str, int | str] = {}
    for root, prefix in ((data.root, ""), (data.unlabelled_root, "unlabelled_root:")):
        if root is None or not wanted:
            continue
        sizes = storage.sizes(root)
        found |= {prefix + name: size for name, size in sizes.items() if storage.join(root, name) in wanted}
        if not prefix and _TABLE in sizes:
            found[_TABLE] = hashlib.sha256(storage.read_bytes(storage.join(root, _TABLE))).hexdigest()
    return found


def _differences(then: Mapping[str, int | str], now: Mapping[str, int | str]) -> list[str]:
    words = {True: {True: "changed", False: "removed"}, False: {True: "added"}}
    return [
        f"{name}: {words[name in then][name in now]}"
        for name in sorted({*then, *now})
        if then.get(name) != now.get(name)
    ]
