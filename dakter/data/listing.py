"""Listing the files of a dataset: images with their masks, and a fault for every file that does not fit."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from dakter import storage
from dakter.data.catalogue import UNLABELLED, Entry
from dakter.data.images import IMAGE_SUFFIXES
from dakter.errors import StorageError


def pair(
    split: str,
    sensor: str,
    images: dict[str, str],
    labels: dict[str, str],
    *,
    expected_label: Callable[[str], str],
    where: str,
) -> tuple[list[Entry], list[str]]:
    """Entries of images (key -> URL) with their masks (key -> URL), and a fault for each without its twin."""
    faults = []
    if not images:
        faults.append(f"{where}: no images; expected at least one")
    for key in sorted(set(images) - set(labels)):
        faults.append(f"{images[key]}: its mask is missing; expected {expected_label(key)}")
    for key in sorted(set(labels) - set(images)):
        faults.append(f"{labels[key]}: its image is missing")
    both = sorted(set(images) & set(labels))
    return [Entry(split, sensor, key, images[key], labels[key]) for key in both], faults


def files_below(url: str) -> list[str]:
    """Names of the files below a folder or prefix, relative to it.

    Hidden ones, those in hidden folders (.ipynb_checkpoints) and thumbnails' caches are left out.

    Raises:
        StorageError: a link that leads nowhere, which would be passed over otherwise.
    """
    if not storage.is_remote(url):
        root = storage.local_path(url)
        for path in sorted(root.rglob("*")):
            if path.is_symlink() and not path.exists() and _is_shown(path.relative_to(root).as_posix()):
                raise StorageError(f"{path} links to {path.readlink()}, which is not there; is a disk not mounted?")
    return [name for name in storage.sizes(url) if _is_shown(name)]


def _is_shown(name: str) -> bool:
    return not any(part.startswith(".") for part in name.split("/")) and not name.endswith("Thumbs.db")


def by_stem(url: str, names: Iterable[str], suffixes: tuple[str, ...]) -> tuple[dict[str, str], list[str]]:
    """File stem -> URL of the names (directly in ``url``) with known suffixes; a fault for each other one."""
    found: dict[str, str] = {}
    faults = []
    for name in sorted(names):
        stem, _, suffix = name.rpartition(".")
        if "/" in name:
            faults.append(f"{storage.join(url, name)}: in a folder of its own; expected files directly in {url}")
        elif f".{suffix.lower()}" not in suffixes:
            faults.append(f"{storage.join(url, name)}: not expected here; expected {', '.join(suffixes)} files")
        elif stem in found:
            faults.append(f"{storage.join(url, name)}: same name as {found[stem]}; expected one file a name")
        else:
            found[stem] = storage.join(url, name)
    return found, faults


def unlabelled(sensor: str, url: str) -> tuple[list[Entry], list[str]]:
    """Entries of a folder of images without masks."""
    images, faults = by_stem(url, files_below(url), IMAGE_SUFFIXES)
    if not images:
        faults.append(f"{url}: no images; expected {', '.join(IMAGE_SUFFIXES)}, or no data.unlabelled_root")
    return [Entry(UNLABELLED, sensor, stem, image) for stem, image in images.items()], faults
