"""A reverse proxy before an S3 endpoint that fails on purpose: which request, and how, is drawn from a seed.

It runs in a process of its own (``running``) and is steered through ``Proxy``. Faults (``KINDS``):

    slow_down      503 SlowDown, nothing done            forbidden      403 ExpiredToken, nothing done
    internal       500 InternalError, nothing done       conflict       409 on a conditional put, nothing done
    timeout        no answer at all, nothing done        precondition   412 on a conditional put, nothing done
    reset_before   the connection is cut, nothing done
    reset_after    the request is carried out, then the connection is cut without an answer

Conditional headers and bodies pass through as they come; bodies are streamed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import socket
import struct
import subprocess
import sys
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from dakter.errors import StorageError

# Kind -> status and S3 error code, None where the connection fails instead.
KINDS: dict[str, tuple[int, str] | None] = {
    "slow_down": (503, "SlowDown"),
    "internal": (500, "InternalError"),
    "timeout": None,
    "reset_before": None,
    "reset_after": None,
    "forbidden": (403, "ExpiredToken"),
    "conflict": (409, "ConditionalRequestConflict"),
    "precondition": (412, "PreconditionFailed"),
}
CONDITIONAL = ("conflict", "precondition")  # what S3 answers to conditional puts alone
_CONDITION = {"PreconditionFailed": "<Condition>If-None-Match</Condition>"}
CONTROL = "/-/faults"  # no bucket can have this name
_HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "expect", "host"}
_CHUNK = 1 << 18


@dataclass
class Plan:
    """Which request fails, and how.

    Attributes:
        seed: of the draws.
        rate: share of requests that fail while faults of a kind that fits are left.
        left: kind -> how many more are to be delivered.
        outage: kind of which every request is a victim, on top of ``left``; None: no outage.
    """

    seed: int = 0
    rate: float = 0.0
    left: dict[str, int] = field(default_factory=dict)
    outage: str | None = None
    delivered: Counter[str] = field(default_factory=Counter)
    by_operation: Counter[str] = field(default_factory=Counter)
    passed: int = 0

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def draw(self, operation: str) -> str | None:
        """The fault of the next request, counted; None: it passes. One draw a request, so a seed means a sequence."""
        chance, pick = self._random.random(), self._random.random()
        fitting = [kind for kind in KINDS if self.left.get(kind, 0) > 0 and _fits(kind, operation)]
        kind = None
        if self.outage and _fits(self.outage, operation):
            kind = self.outage
        elif fitting and chance < self.rate:
            special = [name for name in fitting if name in CONDITIONAL]  # fewer requests fit them
            pool = special * 2 + fitting
            kind = pool[int(pick * len(pool))]
            self.left[kind] -= 1
        if kind is None:
            self.passed += 1
            return None
        self.delivered[kind] += 1
        self.by_operation[f"{kind} {operation}"] += 1
        return kind

    def change(self, wanted: Mapping[str, Any]) -> None:
        """Take over ``rate``, ``left`` (whole) and ``outage`` where given; raises ValueError for an unknown kind."""
        kinds = [*wanted.get("left", {}), *([wanted["outage"]] if wanted.get("outage") else [])]
        if unknown := sorted(set(kinds) - set(KINDS)):
            raise ValueError(f"unknown faults {unknown}; expected some of {sorted(KINDS)}")
        self.rate = float(wanted.get("rate", self.rate))
        self.left = {kind: int(count) for kind, count in wanted.get("left", self.left).items()}
        self.outage = wanted.get("outage", self.outage)

    def report(self) -> dict[str, Any]:
        """Counts so far."""
        return {
            "delivered": dict(self.delivered),
            "by_operation": dict(sorted(self.by_operation.items())),
            "passed": self.passed,
            "left": self.left,
        }


def _fits(kind: str, operation: str) -> bool:
    return kind not in CONDITIONAL or operation.startswith("conditional")


def operation_of(method: str, query: str, headers: Mapping[str, str]) -> str:
    """``"get"``, ``"head"``, ``"put"``, ``"conditional put"``, ``"list"``, ``"delete"``, ..."""
    if method == "PUT" and ("If-None-Match" in headers or "If-Match" in headers):
        return "conditional put"
    listing = method == "GET" and ("list-type" in query or "prefix=" in query)
    return "list" if listing else method.lower()


class _Server:
    """The proxy within its own process."""

    def __init__(self, upstream: str, seed: int, hang_s: float):
        self._upstream, self._hang_s = upstream.rstrip("/"), hang_s
        self.plan = Plan(seed)
        self._client: aiohttp.ClientSession | None = None

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if request.path == CONTROL:
            return await self._control(request)
        operation = operation_of(request.method, request.query_string, request.headers)
        kind = self.plan.draw(operation)
        if kind is None:
            return await self._forward(request, answer=True)
        if kind == "timeout":
            await asyncio.sleep(self._hang_s)  # the client gives up first, which cancels this
        if kind == "reset_after":
            await self._forward(request, answer=False)
        if (known := KINDS[kind]) is None:
            return _cut(request)
        status, code = known
        if request.can_read_body:  # S3 reads a body before it says no; so the client hears the answer
            async for _ in request.content.iter_chunked(_CHUNK):
                pass
        text = f"<Error><Code>{code}</Code><Message>injected</Message>{_CONDITION.get(code, '')}</Error>"
        return web.Response(
            status=status, text="" if request.method == "HEAD" else text, content_type="application/xml"
        )

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()

    async def _control(self, request: web.Request) -> web.Response:
        if request.method == "POST":
            try:
                self.plan.change(await request.json())
            except ValueError as error:
                return web.json_response({"error": str(error)}, status=400)
        return web.json_response(self.plan.report())

    async def _forward(self, request: web.Request, *, answer: bool) -> web.StreamResponse:
        if self._client is None:  # made within the running loop
            self._client = aiohttp.ClientSession(
                auto_decompress=False, connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(300)
            )
        headers = CIMultiDict((name, value) for name, value in request.headers.items() if name.lower() not in _HOP)
        async with self._client.request(
            request.method,
            URL(self._upstream + request.raw_path, encoded=True),
            headers=headers,
            data=request.content.iter_chunked(_CHUNK) if request.can_read_body else None,
            skip_auto_headers=("User-Agent", "Accept-Encoding", "Content-Type", "Accept"),
            allow_redirects=False,
        ) as reply:
            response = web.StreamResponse(status=reply.status, reason=reply.reason)
            for name, value in reply.headers.items():
                if name.lower() not in _HOP:
                    response.headers.add(name, value)
            if not answer:
                await reply.read()
                return response
            await response.prepare(request)
            async for chunk in reply.content.iter_chunked(_CHUNK):
                await response.write(chunk)
            await response.write_eof()
            return response


def _cut(request: web.Request) -> web.Response:
    """Close the connection with RST instead of an answer."""
    if request.transport is not None:
        raw = request.transport.get_extra_info("socket")
        if raw is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        request.transport.abort()
    return web.Response(status=500)  # goes nowhere


async def _serve(upstream: str, seed: int, hang_s: float, port_file: Path) -> None:
    app = web.Application(client_max_size=1 << 30)
    server = _Server(upstream, seed, hang_s)
    app.router.add_route("*", "/{path:.*}", server.handle)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert site._server is not None
    port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
    port_file.with_suffix(".tmp").write_text(str(port))
    port_file.with_suffix(".tmp").rename(port_file)
    # Standard input ends with the process that started this one, however that ended.
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()

    def wait_for_end() -> None:
        sys.stdin.buffer.read()
        loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=wait_for_end, daemon=True).start()
    await ended.wait()
    await runner.cleanup()
    await server.close()


class Proxy:
    """Steers a running proxy; ``url`` is the endpoint to give to S3 clients."""

    def __init__(self, url: str):
        self.url = url

    def change(self, **wanted: Any) -> dict[str, Any]:
        """Set ``rate``, ``left``, ``outage`` (see ``Plan``); returns the counts so far."""
        return self._ask(json.dumps(wanted).encode())

    def report(self) -> dict[str, Any]:
        """Counts so far: ``delivered`` by kind, ``by_operation``, ``passed``, ``left``."""
        return self._ask(None)

    def _ask(self, data: bytes | None) -> dict[str, Any]:
        with urllib.request.urlopen(self.url + CONTROL, data=data, timeout=30) as reply:
            return dict(json.load(reply))


@contextmanager
def running(upstream: str, folder: Path, *, seed: int = 0, hang_s: float = 60.0) -> Iterator[Proxy]:
    """A proxy before ``upstream`` in a process of its own.

    Args:
        folder: takes its port file and log.
        hang_s: how long a request of kind ``timeout`` is held before its connection is cut.

    Raises:
        StorageError: it did not start.
    """
    port_file = folder / "proxy.port"
    port_file.unlink(missing_ok=True)
    command = [sys.executable, "-m", __name__, "--upstream", upstream, "--seed", str(seed), "--hang-s", str(hang_s)]
    with open(folder / "proxy.log", "ab") as log:
        process = subprocess.Popen(
            [*command, "--port-file", str(port_file)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=Path(__file__).parents[2],
        )
    assert process.stdin is not None
    try:
        for _ in range(600):
            if port_file.exists():
                break
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.1)
                break
        if not port_file.exists():
            raise StorageError(f"the proxy did not start: {(folder / 'proxy.log').read_text()[-2000:]}")
        yield Proxy(f"http://127.0.0.1:{port_file.read_text()}")
    finally:
        process.stdin.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upstream", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hang-s", type=float, default=60.0)
    parser.add_argument("--port-file", type=Path, required=True)
    options = parser.parse_args()
    asyncio.run(_serve(options.upstream, options.seed, options.hang_s, options.port_file))


if __name__ == "__main__":
    _main()
