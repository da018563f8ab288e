"""Whole objects below one URL with their version tags, through obstore: for local folders and S3 alike.

Reading a 22 MB object this way is 3 to 4 times faster than through s3fs, and a replacement can be made conditional on
the version that was read. As in ``storage``, what a remote store refuses is tried again some times, and what still
fails is a StorageError.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import LocalStore, S3Store

from dakter import storage
from dakter.errors import StorageError

T = TypeVar("T")


class Objects:
    """The objects below ``url`` (a local folder or ``s3://bucket/prefix``); safe to use from many threads."""

    def __init__(self, url: str):
        self.url = url
        self._remote = storage.is_remote(url)
        self._store: Any = _s3(url) if self._remote else None
        self._root = "" if self._remote else str(storage.local_path(url))

    def get(self, key: str) -> tuple[bytes, str]:
        """A whole object and the tag of the version read; raises FileNotFoundError or StorageError."""

        def whole() -> tuple[bytes, str]:
            result = obstore.get(self._at(), key)
            return bytes(result.bytes()), str(result.meta["e_tag"])

        return self._call(key, "reading", whole)

    def view(self, key: str) -> memoryview:
        """A whole object without copying it (a bytes copy holds up every other thread); raises as ``get`` does.

        In a local folder by plain reading: of small files in a third, of large ones in two thirds of obstore's time.
        """
        return self.version(key)[0]

    def version(self, key: str) -> tuple[memoryview, str]:
        """As ``view``, and what names this version of the object: no other bytes under this key have the same name.

        On S3 its ETag; in a local folder inode, size and time of the last change, which no program can set.
        """

        def whole() -> tuple[memoryview, str]:
            if self._remote:
                found = obstore.get(self._at(), key)
                return memoryview(found.bytes()), str(found.meta["e_tag"])
            with open(f"{self._root}/{key}", "rb", buffering=0) as file:
                facts = os.fstat(file.fileno())
                return memoryview(file.read()), f"{facts.st_ino}-{facts.st_size}-{facts.st_ctime_ns}"

        return self._call(key, "reading", whole)

    def tag(self, key: str) -> str:
        """The tag of the version that stands; raises FileNotFoundError or StorageError."""
        return str(self._call(key, "look-up", lambda: obstore.head(self._at(), key))["e_tag"])

    def modified(self, folder: str) -> dict[str, float]:
        """Every object below ``folder``: path relative to it -> time of its last change (Unix seconds).

        One listing; empty if nothing is there.
        """
        return {key: entry["last_modified"].timestamp() for key, entry in self._entries(folder)}

    def keys(self, folder: str) -> list[str]:
        """Every object below ``folder``, sorted, as a path relative to it: one listing; empty if nothing is there."""
        if self._remote:
            return sorted(key for key, _ in self._entries(folder))
        root = f"{self._root}/{folder}"
        found: list[str] = []
        for where, _, names in os.walk(root):  # names alone: to look at each file takes 20 times as long
            below = where[len(root) + 1 :]
            found += [f"{below}/{name}" if below else name for name in names if not name.endswith(".tmp")]
        return sorted(found)

    def _entries(self, folder: str) -> list[tuple[str, Any]]:
        def collect() -> list[tuple[str, Any]]:
            return [
                (entry["path"].removeprefix(f"{folder}/"), entry)
                for batch in obstore.list(self._at(), prefix=folder)
                for entry in batch
            ]

        try:
            return self._call(folder, "listing", collect)
        except FileNotFoundError:
            return []

    def create(self, key: str, data: bytes) -> str:
        """Put ``data`` only if nothing stands there and return its tag.

        Raises:
            FileExistsError: something stands there; it may be this call's own, if an answer was lost.
            StorageError: the store refused, after some tries.
        """
        if not self._remote:
            storage.put_new(storage.join(self.url, key), data)
            return self.tag(key)

        def put() -> str:
            try:
                return str(obstore.put(self._at(), key, data, mode="create", use_multipart=False)["e_tag"])
            except AlreadyExistsError as error:  # a 412; or a 409: another put to this key was under way
                try:
                    obstore.head(self._at(), key)
                except FileNotFoundError:
                    raise StorageError(
                        f"{storage.join(self.url, key)}: the store said that something stands there, but nothing does"
                    ) from error
                raise

        return self._call(key, "writing", put)

    def replace(self, key: str, data: bytes, tag: str) -> bool:
        """Replace the version with ``tag`` by ``data``; False if another one stands by now, or comes to stand.

        False may also follow a replacement that was carried out while the answer was lost: look at what stands.

        On S3 one conditional put (If-Match). A local folder has no such operation: there the look and the
        replacement are two steps, and whoever replaces must look again afterwards.
        """
        if not self._remote:
            if self.tag(key) != tag:
                return False
            storage.put(storage.join(self.url, key), data)
            return True
        try:
            self._call(
                key, "replacing", lambda: obstore.put(self._at(), key, data, mode={"e_tag": tag}, use_multipart=False)
            )
        except (_Changed, FileExistsError):  # a 412, or a 409: another put to this key was under way
            return False
        return True

    def _at(self) -> Any:
        if self._store is None:  # on first use: LocalStore wants its folder to stand
            path = storage.local_path(self.url)
            if not path.is_dir():
                raise FileNotFoundError(f"{self.url}: no such folder")
            self._store = LocalStore(path)
        return self._store

    def _call(self, key: str, doing: str, what: Callable[[], T]) -> T:
        where = storage.join(self.url, key)

        def once() -> T:
            try:
                return what()
            except FileNotFoundError as error:
                raise FileNotFoundError(f"{where}: nothing is there") from error
            except AlreadyExistsError as error:
                raise FileExistsError(f"{where}: something stands there already") from error
            except PreconditionError as error:
                raise _Changed(f"{where}: changed meanwhile") from error
            except StorageError:
                raise
            except (BaseError, OSError) as error:
                raise StorageError(
                    f"{where}: {doing} failed ({_first_line(error)}); check credentials, network, AWS_ENDPOINT_URL"
                ) from error

        return storage.patiently(once) if self._remote else once()


class _Changed(Exception):
    pass


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]  # below it obstore repeats itself as a debug dump


def _s3(url: str) -> S3Store:
    import botocore.session  # type: ignore[import-untyped]

    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    session = botocore.session.Session()
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or session.get_config_variable("region") or "us-east-1"
    credentials = session.get_credentials()
    if credentials is None:
        raise StorageError(f"{url}: no S3 credentials found; set AWS_PROFILE or the AWS_ACCESS_KEY_ID pair, or a role")

    def provide() -> dict[str, Any]:  # botocore's own chain (profiles, roles), as s3fs uses it; it renews them
        frozen = credentials.get_frozen_credentials()
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(UTC) + timedelta(minutes=5),
        }

    options: dict[str, Any] = {"endpoint": endpoint} if endpoint else {}
    patience_s = storage.request_timeout_s()
    return S3Store(
        bucket,
        prefix=prefix.strip("/") or None,
        region=region,
        credential_provider=provide,  # type: ignore[arg-type]
        client_options={
            "allow_http": bool(endpoint and endpoint.startswith("http://")),
            "connect_timeout": timedelta(seconds=storage.CONNECT_TIMEOUT_S),
            "read_timeout": timedelta(seconds=patience_s),  # of each read, and of the wait for the answer
            "timeout": timedelta(seconds=10 * patience_s),  # of a whole object that trickles in
        },
        retry_config={"max_retries": 0},  # tries are counted in one place, storage.patiently
        **options,
    )
