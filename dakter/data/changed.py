"""Whether the files of a source are still those that its tiles were made from.

Beside the tiles stands ``source.json``: of every mask and of ``classes.yaml`` the digest, since a mended one may be as
long as before, of every image the size. So the same command after a mask was mended does not go on with the old tiles.
Tiles made before it was written are taken as they are.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping

from dakter import storage
from dakter.data.catalogue import Catalogue, parallel
from dakter.data.source import DataConfig, catalogue
from dakter.errors import ConflictError, DataError, StorageError, listing

log = logging.getLogger("dakter.data")

RECORD = "source.json"
# What identifies the files below a root, by their names in it.
_Files = dict[str, int | str]


def put_record(url: str, offer: Catalogue, data: DataConfig) -> None:
    """Write what the tiles at ``url`` are made from; nothing where that is no files."""
    if found := _files(offer, data):
        storage.put_json(storage.join(url, RECORD), found)


def refuse_changed(url: str, data: DataConfig) -> None:
    """Compare the source, where it can be read, with the record beside the complete tiles at ``url``.

    Raises:
        ConflictError: names files that were added, removed or changed.
        ConfigError: ``classes.yaml`` no longer fits.
    """
    where = storage.join(url, RECORD)
    if data.root is None or not storage.exists(where):
        return
    try:
        now = _files(catalogue(data), data)
    except (DataError, StorageError, FileNotFoundError) as error:
        log.warning("%s: whether it changed since its tiles were made cannot be told: %s", data.root, error)
        return
    then = storage.read_json(where)
    for key, root in _roots(data).items():
        if not now.get(key):
            log.warning("%s: nothing is there any more; its tiles are taken as they stand", root)
        elif different := _differences(then.get(key, {}), now[key]):
            raise ConflictError(
                f"{url}: tiles stand here, and {len(different)} files of {root} changed since; remove the tiles, "
                "choose another place (--out or --paths.tiles), or leave out --data.root to take them as they are:\n"
                f"{listing(different)}"
            )


def _roots(data: DataConfig) -> dict[str, str]:
    named = {"root": data.root, "unlabelled_root": data.unlabelled_root}
    return {key: f"{root.rstrip('/')}/" for key, root in named.items() if root is not None}


def _files(offer: Catalogue, data: DataConfig) -> dict[str, _Files]:
    """Name of a root -> its files, as far as entries have them; without those that have none."""
    labels = {entry.label for entry in offer.entries if entry.label}
    images = {entry.image for entry in offer.entries if entry.image}
    sizes: dict[str, int] = {}
    for folder in sorted({url.rpartition("/")[0] for url in images}):
        sizes |= {storage.join(folder, name): size for name, size in storage.sizes(folder).items()}
    found: dict[str, _Files] = {}
    for key, root in _roots(data).items():
        own = [url for url in sorted(labels) if url.startswith(root)] if key == "root" else []
        table = storage.join(root, "classes.yaml")
        if own and storage.exists(table):
            own.append(table)
        files: _Files = dict(zip(own, parallel(_digest, own), strict=True))
        files |= {url: sizes[url] for url in sorted(images) if url.startswith(root) and url in sizes}
        if files:
            found[key] = {url.removeprefix(root): value for url, value in files.items()}
    return found


def _digest(url: str) -> str:
    return hashlib.sha256(storage.read_bytes(url)).hexdigest()


def _differences(then: Mapping[str, int | str], now: Mapping[str, int | str]) -> list[str]:
    words = {True: {True: "changed", False: "removed"}, False: {True: "added"}}
    return [
        f"{name}: {words[name in then][name in now]}"
        for name in sorted({*then, *now})
        if then.get(name) != now.get(name)
    ]
