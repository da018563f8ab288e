"""Local paths and ``s3://`` URLs alike: whole objects, put at once or not at all.

Credentials and endpoint come from the environment as every AWS tool reads them (``AWS_ENDPOINT_URL`` included);
nothing here stores or prints them.

An operation on a remote store that fails is tried again some times (``patiently``); what still fails is a StorageError,
whatever the library underneath raised. So is a full disk. Only then has the caller to decide.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import random
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import fsspec

from dakter.errors import ConfigError, IntegrityError, StorageError

log = logging.getLogger("dakter.storage")
T = TypeVar("T")

# Seconds between the tries of one operation on a remote store: a shard is dearer than a few seconds.
WAITS_S = (0.5, 2.0, 8.0)
CONNECT_TIMEOUT_S = 5.0
_TIMEOUT_VARIABLE = "DAKTER_S3_TIMEOUT_S"


def is_remote(url: str) -> bool:
    """Whether ``url`` has a scheme other than ``file``."""
    return "://" in url and not url.startswith("file://")


def local_path(url: str) -> Path:
    """The path behind a local URL; raises StorageError for a remote one."""
    if is_remote(url):
        raise StorageError(f"{url}: expected a local path")
    return Path(url.removeprefix("file://"))


def absolute(url: str) -> str:
    """A local path made absolute, since Ray's workers stand in other folders; a URL as it is."""
    return url if is_remote(url) else str(local_path(url).absolute())


def join(url: str, *parts: str) -> str:
    """``join("s3://b/x", "y")`` is ``s3://b/x/y``."""
    return "/".join([url.rstrip("/"), *(part.strip("/") for part in parts)])


def request_timeout_s() -> float:
    """How long a request to S3 may bring nothing before it counts as failed: DAKTER_S3_TIMEOUT_S, or 30.

    One shard must be sent within it: raise it for uplinks of less than a megabyte per second.
    """
    text = os.environ.get(_TIMEOUT_VARIABLE, "30")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise ConfigError(f"{_TIMEOUT_VARIABLE} is {text!r}; expected seconds, e.g. 30")
    return seconds


def patiently(what: Callable[[], T]) -> T:
    """Do an operation on a remote store, again after a while if the store refuses; it must bear being done twice.

    Every refusal is met so, a 403 as well: credentials expire and are renewed.
    """
    for wait_s in WAITS_S:
        try:
            return what()
        except StorageError as error:
            wait_s *= random.uniform(0.5, 1.5)  # many clients that were refused together must not return together
            log.warning("%s; again in %.1f s", error, wait_s)
            time.sleep(wait_s)
    return what()


def _remote(url: str) -> fsspec.AbstractFileSystem:
    # Listings are never cached: other writers put objects at any time.
    if not url.startswith("s3://"):
        return fsspec.core.url_to_fs(url, use_listings_cache=False)[0]
    # Tries are counted in one place, patiently(): those of botocore and s3fs would multiply to many minutes.
    client = {
        "connect_timeout": CONNECT_TIMEOUT_S,
        "read_timeout": request_timeout_s(),
        "retries": {"total_max_attempts": 1},
    }
    system = fsspec.core.url_to_fs(url, use_listings_cache=False, config_kwargs=client)[0]
    system.retries = 1
    return system


def _do(url: str, doing: str, what: Callable[[], T]) -> T:
    """``what``, with errors that name ``url``; patiently if that is remote."""

    def once() -> T:
        with _named(url, doing):
            return what()

    return patiently(once) if is_remote(url) else once()


@contextmanager
def _named(url: str, doing: str) -> Iterator[None]:
    """Turn a library's error into one that names the URL and the remedy."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{url}: nothing is there ({doing})") from error
    except (FileExistsError, StorageError):
        raise
    except PermissionError as error:
        raise StorageError(
            f"{url}: no permission for {doing} ({error}); check the credentials and the bucket's or folder's policy"
        ) from error
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "free some space" if full else "check the path, the network and AWS_ENDPOINT_URL"
        raise StorageError(f"{url}: {doing} failed ({error}); {remedy}") from error
    except Exception as error:  # botocore's errors share no base with OSError
        if type(error).__module__.split(".")[0] not in ("botocore", "aiobotocore", "aiohttp"):
            raise
        raise StorageError(
            f"{url}: {doing} failed ({error}); check the credentials, the region and AWS_ENDPOINT_URL"
        ) from error


def exists(url: str) -> bool:
    """Whether an object or folder stands at ``url``."""
    return _do(url, "look-up", lambda: bool(_remote(url).exists(url)) if is_remote(url) else local_path(url).exists())


def read_bytes(url: str) -> bytes:
    """The whole object; raises FileNotFoundError or StorageError."""
    return _do(
        url, "reading", lambda: bytes(_remote(url).cat_file(url)) if is_remote(url) else local_path(url).read_bytes()
    )


def put(url: str, data: bytes) -> None:
    """Write a whole object, replacing what was there; readers see the old or the new, never a part."""

    def write() -> None:
        if is_remote(url):
            _remote(url).pipe_file(url, data)
            return
        with _beside(local_path(url), data) as temporary:
            os.replace(temporary, local_path(url))

    _do(url, "writing", write)


def put_new(url: str, data: bytes) -> None:
    """Write a whole object only if nothing stands there: of several writers at most one succeeds.

    Raises:
        FileExistsError: something stands there, untouched. On a remote store it may be this call's own, carried out
            while the answer was lost: whoever must know compares what stands.
    """

    def write() -> None:
        if not is_remote(url):
            with _beside(local_path(url), data) as temporary:
                os.link(temporary, local_path(url))  # atomic, and fails if the name is taken
            return
        try:
            _remote(url).pipe_file(url, data, mode="create")
        except OSError as error:
            if not isinstance(error, FileExistsError) and error.errno != errno.EINVAL:  # s3fs's names for a 412
                raise
            if not _remote(url).exists(url):
                raise StorageError(f"{url}: the store said that something stands there, but nothing does") from error
            raise FileExistsError(f"{url}: something stands there already") from error

    _do(url, "writing", write)


@contextmanager
def _beside(path: Path, data: bytes) -> Iterator[Path]:
    """``data`` in a temporary file next to ``path``, gone afterwards unless moved away."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:  # a file stands where a folder is needed: not the FileExistsError of put_new
        raise StorageError(f"{path.parent}: writing failed (a file stands there); choose another folder") from error
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}.tmp"
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def delete(url: str) -> None:
    """Remove one object; silent if it is not there."""

    def remove() -> None:
        if not is_remote(url):
            local_path(url).unlink(missing_ok=True)
        elif _remote(url).exists(url):
            _remote(url).rm_file(url)

    _do(url, "deleting", remove)


def sizes(url: str) -> dict[str, int]:
    """Every object below ``url``: path relative to it -> bytes. Empty if nothing is there."""

    def find() -> dict[str, int]:
        if is_remote(url):
            system = _remote(url)
            base = system._strip_protocol(url).rstrip("/") + "/"
            found = system.find(url, detail=True)
            return {path.removeprefix(base): int(info["size"]) for path, info in sorted(found.items())}
        root = local_path(url)
        files = sorted(path for path in root.rglob("*") if path.is_file() and not path.name.endswith(".tmp"))
        return {path.relative_to(root).as_posix(): path.stat().st_size for path in files}

    return _do(url, "listing", find)


def read_json(url: str) -> Any:
    """A JSON document; raises FileNotFoundError, StorageError or IntegrityError if it is not JSON."""
    try:
        return json.loads(read_bytes(url))
    except ValueError as error:
        raise IntegrityError(f"{url}: not readable as JSON ({error}); the file was altered or cut short") from error


def to_json_bytes(data: Any) -> bytes:
    """JSON for people to read: indented, sorted, no NaN."""
    return (json.dumps(data, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def put_json(url: str, data: Any) -> None:
    """``put`` of ``to_json_bytes(data)``."""
    put(url, to_json_bytes(data))


def put_json_new(url: str, data: Any) -> None:
    """``put_new`` of ``to_json_bytes(data)``."""
    put_new(url, to_json_bytes(data))


def check_writable(url: str) -> None:
    """Write and remove a probe object, so that a missing permission is told before hours are spent."""
    probe = join(url, f".probe-{uuid.uuid4().hex}")
    try:
        put(probe, b"")
    except FileNotFoundError as error:
        raise StorageError(f"{url}: writing failed ({error}); create the bucket or correct the URL") from error
    delete(probe)


def upload_folder(folder: Path, url: str) -> None:
    """Copy every file below ``folder`` to ``url``, each whole; write your completion record afterwards."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            put(join(url, path.relative_to(folder).as_posix()), path.read_bytes())


def download_folder(url: str, folder: Path) -> Path:
    """Copy every object below ``url`` into ``folder`` and return it; raises FileNotFoundError if there is none."""
    names = list(sizes(url))
    if not names:
        raise FileNotFoundError(f"{url}: nothing is there")
    for name in names:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(read_bytes(join(url, name)))
    return folder


def remove_folder(url: str) -> None:
    """Remove a folder or prefix with all below it; silent if it is not there."""

    def remove() -> None:
        if not is_remote(url):
            shutil.rmtree(local_path(url), ignore_errors=True)
        elif _remote(url).exists(url):
            _remote(url).rm(url, recursive=True)

    _do(url, "deleting", remove)


def zarr_store(url: str) -> str | Any:
    """What to hand to zarr and xarray: plain paths stay paths (a ``file://`` URL takes a slower road)."""
    if not is_remote(url):
        return str(local_path(url))
    from zarr.storage import FsspecStore

    return FsspecStore.from_url(url, storage_options={"use_listings_cache": False})
