"""A saved model: a folder of files and, written last, ``model.json`` with the sha256 of every one of them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from dakter import storage
from dakter.config import digest_json
from dakter.errors import ConflictError, IntegrityError, listing

FORMAT = "dakter joint diffusion model 1"
RECORD = "model.json"


def put_model(folder: Path, url: str, record: dict[str, Any]) -> str:
    """Copy ``folder`` to ``url`` (a path or ``s3://``) and complete it with its record; returns the model digest.

    The digest covers names and bytes of the files. The same model again returns what stands; a half-written one is
    completed.

    Raises:
        ConflictError: another model, or something else, stands at ``url``.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    digest = digest_json(files)
    if _stands(url, digest):
        return digest
    strangers = sorted(set(storage.sizes(url)) - set(files)) if storage.exists(url) else []
    if strangers:
        raise ConflictError(
            f"{url} holds files that are no part of a model; choose another place:\n{listing(strangers)}"
        )
    storage.upload_folder(folder, url)
    try:
        storage.put_json_new(
            storage.join(url, RECORD), {"format": FORMAT, "digest": digest, "files": files, "record": record}
        )
    except FileExistsError:  # another writer was first
        _stands(url, digest)
    return digest


def _stands(url: str, digest: str) -> bool:
    try:
        standing = storage.read_json(storage.join(url, RECORD))
    except FileNotFoundError:
        return False
    found = standing.get("digest") if isinstance(standing, dict) else None
    if found != digest:
        raise ConflictError(
            f"{url}: another model stands there (digest {str(found)[:12]}.., this one {digest[:12]}..); choose another "
            "place, or remove it"
        )
    return True


def fetch_model(url: str, folder: Path) -> tuple[str, dict[str, Any]]:
    """Copy the model at ``url`` into ``folder``, every byte checked; returns (digest, record).

    Raises:
        IntegrityError: no complete model is there, or a file is missing or altered.
    """
    try:
        standing = storage.read_json(storage.join(url, RECORD))
    except FileNotFoundError:
        raise IntegrityError(
            f"{url}: no {RECORD}; expected a model written by this project's training, complete. Check the path, or "
            "run training again to complete it"
        ) from None
    if not isinstance(standing, dict) or standing.get("format") != FORMAT:
        raise IntegrityError(f"{url}: its {RECORD} is not of format {FORMAT!r}; expected a joint diffusion model")
    try:
        files, digest, record = dict(standing["files"]), str(standing["digest"]), dict(standing["record"])
    except (KeyError, TypeError, ValueError) as error:
        raise IntegrityError(f"{url}: {RECORD} lacks what it must hold ({error!r}); the file was altered") from error
    if digest_json(files) != digest:
        raise IntegrityError(f"{url}: {RECORD} does not fit its own digest; the file was altered")
    for name, expected in files.items():
        target = folder / name
        if not target.resolve().is_relative_to(folder.resolve()):
            raise IntegrityError(f"{url}: {RECORD} names {name!r}, outside the model; the file was altered")
        try:
            data = storage.read_bytes(storage.join(url, name))
        except FileNotFoundError:
            raise IntegrityError(f"{url}: {name} is missing; copy the whole folder, or train again") from None
        found = hashlib.sha256(data).hexdigest()
        if found != expected:
            raise IntegrityError(
                f"{url}: {name} has sha256 {found[:12]}.., recorded {expected[:12]}..; it was altered or cut short"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    return digest, record
