"""S3 requests noted on the wire, whichever client sends them, and read as IAM reads them."""

from __future__ import annotations

import html
import io
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from aws_stacks import Statement, allowed


@dataclass(frozen=True)
class Request:
    """One request to S3 as IAM sees it: an action on a bucket or object; ``prefix`` only of a listing."""

    action: str
    bucket: str
    key: str
    prefix: str | None = None


@dataclass
class Recorder:
    """Stands before moto's server and notes each request: method, path, query, and the body of a batch delete."""

    application: Any
    seen: list[tuple[str, str, str, str]] = field(default_factory=list)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        query, body = environ.get("QUERY_STRING", ""), b""
        if "HTTP_X_AMZ_COPY_SOURCE" in environ:
            query += "&x-copy"  # asks for GetObject of its source too: unknown to `action`, which then says so
        if query.split("=")[0] == "delete":
            body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or -1))
            environ["wsgi.input"] = io.BytesIO(body)
        self.seen.append((environ["REQUEST_METHOD"], environ["PATH_INFO"], query, body.decode()))
        return self.application(environ, start_response)

    @property
    def requests(self) -> list[Request]:
        found = []
        for method, path, text, body in self.seen:
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

    recorder = Recorder(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, recorder, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield recorder, f"http://127.0.0.1:{server.port}"
    finally:
        server.shutdown()
        thread.join()


def credentials(url: str) -> dict[str, str]:
    """The environment in which every S3 client goes to ``url``."""
    keys = {"ACCESS_KEY_ID": "testing", "SECRET_ACCESS_KEY": "testing"}
    return {f"AWS_{name}": value for name, value in (keys | {"ENDPOINT_URL": url, "REGION": "us-east-1"}).items()}


def refused(requests: list[Request], role: list[Statement]) -> set[Request]:
    """The requests that a role may not make; Arrow's look for a bucket that cannot be is none of them."""

    def may(request: Request) -> bool:
        on = f"arn:aws:s3:::{request.bucket}" + (f"/{request.key}" if request.key else "")
        context = {} if request.prefix is None else {"s3_prefix": request.prefix}
        return allowed(role, request.action, on, **context)

    # $extremelyunlikelytoexist$: Arrow asks for it to learn how buckets are addressed; a 403 serves it as well
    return {request for request in requests if request.bucket != "$extremelyunlikelytoexist$" and not may(request)}
