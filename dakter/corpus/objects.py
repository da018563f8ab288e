"""Whole objects below one URL with their version tags, through obstore: for local folders and S3 alike.

Reading a 22 MB object this way is 3 to 4 times faster than through s3fs, and a replacement can be made conditional on
the version that was read.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import LocalStore, S3Store

from dakter import storage
from dakter.errors import StorageError


class Objects:
    """The objects below ``url`` (a local folder or ``s3://bucket/prefix``); safe to use from many threads."""

    def __init__(self, url: str):
        self.url = url
        self._remote = storage.is_remote(url)
        self._store: Any = _s3(url) if self._remote else None

    def get(self, key: str) -> tuple[bytes, str]:
        """A whole object and the tag of the version read; raises FileNotFoundError or StorageError."""
        result = self._call(key, "reading", lambda: obstore.get(self._at(), key))
        return self._call(key, "reading", lambda: bytes(result.bytes())), str(result.meta["e_tag"])

    def view(self, key: str) -> memoryview:
        """A whole object without copying it (a bytes copy holds up every other thread); raises as ``get`` does."""
        return self._call(key, "reading", lambda: memoryview(obstore.get(self._at(), key).bytes()))

    def tag(self, key: str) -> str:
        """The tag of the version that stands; raises FileNotFoundError or StorageError."""
        return str(self._call(key, "look-up", lambda: obstore.head(self._at(), key))["e_tag"])

    def create(self, key: str, data: bytes) -> str:
        """Put ``data`` only if nothing stands there and return its tag; raises FileExistsError or StorageError."""
        if not self._remote:
            storage.put_new(storage.join(self.url, key), data)
            return self.tag(key)
        put = obstore.put
        return str(
            self._call(key, "writing", lambda: put(self._at(), key, data, mode="create", use_multipart=False))["e_tag"]
        )

    def replace(self, key: str, data: bytes, tag: str) -> bool:
        """Replace the version with ``tag`` by ``data``; False, and nothing changed, if another one stands by now.

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
        except _Changed:
            return False
        return True

    def _at(self) -> Any:
        if self._store is None:  # on first use: LocalStore wants its folder to stand
            path = storage.local_path(self.url)
            if not path.is_dir():
                raise FileNotFoundError(f"{self.url}: no such folder")
            self._store = LocalStore(path)
        return self._store

    def _call(self, key: str, doing: str, what: Callable[[], Any]) -> Any:
        where = storage.join(self.url, key)
        try:
            return what()
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{where}: nothing is there") from error
        except AlreadyExistsError as error:
            raise FileExistsError(f"{where}: something stands there already") from error
        except PreconditionError as error:
            raise _Changed(f"{where}: changed meanwhile") from error
        except (BaseError, OSError) as error:
            raise StorageError(
                f"{where}: {doing} failed ({error}); check credentials, network, AWS_ENDPOINT_URL"
            ) from error


class _Changed(Exception):
    pass


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
    return S3Store(
        bucket,
        prefix=prefix.strip("/") or None,
        region=region,
        credential_provider=provide,  # type: ignore[arg-type]
        client_options={"allow_http": bool(endpoint and endpoint.startswith("http://"))},
        **options,
    )
