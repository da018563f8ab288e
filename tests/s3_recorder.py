"""S3 requests noted on the wire, whichever client sends them, and read as IAM reads them."""

from __future__ import annotations

import html
import io
import logging
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

# Of a signed header, or of a presigned URL: the access key id up to the date.
_SIGNER = re.compile(r"Credential=([^/%]+)(?:/|%2F)")


@dataclass(frozen=True)
class Request:
    """One request to S3 as IAM sees it: an action on a bucket or object; ``prefix`` only of a listing."""

    action: str
    bucket: str
    key: str
    prefix: str | None = None


# By access key ids: what was asked for since the test began, see conftest.py.
Asked = Callable[..., list[Request]]


def artefacts(requests: Iterable[Request], folder: str) -> set[str]:
    """What directly below ``folder``, a key that ends with a slash, the requests were about; not the folder itself."""
    return {one.key.removeprefix(folder).split("/")[0] for one in requests if one.key.startswith(folder)} - {""}


@dataclass
class Recorder:
    """Stands before moto's server and notes each request: signer, method, path, query, and a batch delete's body."""

    application: Any
    seen: list[tuple[str, str, str, str, str]] = field(default_factory=list)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        query, body = environ.get("QUERY_STRING", ""), b""
        if "HTTP_X_AMZ_COPY_SOURCE" in environ:
            query += "&x-copy"  # asks for GetObject of its source too: unknown to `action`, which then says so
        if query.split("=")[0] == "delete":
            body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or -1))
            environ["wsgi.input"] = io.BytesIO(body)
        signer = _SIGNER.search(environ.get("HTTP_AUTHORIZATION", "") or query)
        who = signer[1] if signer else ""
        self.seen.append((who, environ["REQUEST_METHOD"], environ["PATH_INFO"], query, body.decode()))
        return self.application(environ, start_response)

    def requests(self, *signers: str, since: int = 0) -> list[Request]:
        """What was asked for by these access key ids, or without any by everybody, from ``seen[since]`` on."""
        found = []
        for who, method, path, text, body in self.seen[since:]:
            if signers and who not in signers:
                continue
            query = dict(parse_qsl(text, keep_blank_values=True))
            bucket, _, key = path.lstrip("/").partition("/")
            keys = [html.unescape(name) for name in re.findall("<Key>(.*?)</Key>", body)] if body else [key]
            found += [Request(action(method, key, query), bucket, name, query.get("prefix")) for name in keys]
        return found


def action(method: str, key: str, query: dict[str, str]) -> str:
    """The permission that a request needs (Service Authorization Reference, Amazon S3)."""
    plain = {"prefix", "delimiter", "encoding-type", "max-keys", "continuation-token", "start-after", "x-id"}
    # X-Amz-...: a presigned URL, as the MLflow server gives one to whoever downloads an artifact; judged by its signer
    rest = {name for name in query if name not in plain and not name.startswith(("X-Amz-", "response-content-"))}
    match method, bool(key), rest:
        case (("GET" | "HEAD"), True, found) if not found:
            return "s3:GetObject"
        case "HEAD", False, found if not found:
            return "s3:ListBucket"
        case "GET", False, found if found == {"list-type"}:
            return "s3:ListBucket"
        case "PUT", True, found if not found or found == {"uploadId", "partNumber"}:
            return "s3:PutObject"
        case "POST", True, found if found in ({"uploads"}, {"uploadId"}):
            return "s3:PutObject"
        case "DELETE", True, found if found == {"uploadId"}:
            return "s3:AbortMultipartUpload"
        case "DELETE", True, found if not found:
            return "s3:DeleteObject"
        case "POST", False, found if found == {"delete"}:
            return "s3:DeleteObject"
    raise AssertionError(f"{method} {key!r} {query}: a kind of request that no permission was thought of for")


@contextmanager
def recording() -> Iterator[tuple[Recorder, str]]:
    """A recorder before moto's S3 on loopback, and its URL."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # not a line for every request
    recorder = Recorder(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, recorder, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield recorder, f"http://127.0.0.1:{server.port}"
    finally:
        server.shutdown()
        thread.join()
