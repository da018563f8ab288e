"""The fault-injecting proxy: without faults it changes nothing, and each kind is really delivered and counted."""

from __future__ import annotations

import os
import urllib.error
from collections import Counter
from typing import Any

import obstore
import pytest
from obstore.exceptions import AlreadyExistsError, BaseError, PermissionDeniedError, PreconditionError
from obstore.store import S3Store

from dakter import storage
from jobs.suites._fault_proxy import CONDITIONAL, KINDS, Plan, Proxy, operation_of


def bare_client(bucket: str, endpoint: str) -> S3Store:
    """A client that tries once."""
    return S3Store(
        bucket.removeprefix("s3://"),
        endpoint=endpoint,
        region="us-east-1",
        client_options={"allow_http": True, "timeout": "2s"},
        retry_config={"max_retries": 0},
    )


@pytest.fixture
def client(faulty_bucket: str, fault_proxy: Proxy) -> S3Store:
    return bare_client(faulty_bucket, fault_proxy.url)


def test_large_bodies_and_conditional_headers_pass(client: S3Store, fault_proxy: Proxy) -> None:
    data = os.urandom(25_000_000)
    tag = obstore.put(client, "big", data, mode="create", use_multipart=False)["e_tag"]
    assert bytes(obstore.get(client, "big").bytes()) == data
    assert obstore.head(client, "big")["size"] == len(data)
    with pytest.raises(AlreadyExistsError):
        obstore.put(client, "big", b"other", mode="create", use_multipart=False)
    obstore.put(client, "big", b"new", mode={"e_tag": tag}, use_multipart=False)
    with pytest.raises(PreconditionError):
        obstore.put(client, "big", b"newer", mode={"e_tag": tag}, use_multipart=False)
    assert bytes(obstore.get_range(client, "big", start=1, length=2)) == b"ew"


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_delivered_and_counted(
    kind: str, client: S3Store, s3_server: str, faulty_bucket: str, fault_proxy: Proxy
) -> None:
    direct = bare_client(faulty_bucket, s3_server)
    before = Counter(fault_proxy.change(rate=1, left={kind: 1})["delivered"])
    error: type[Exception] = {"forbidden": PermissionDeniedError, **dict.fromkeys(CONDITIONAL, AlreadyExistsError)}.get(
        kind, BaseError
    )
    if kind in CONDITIONAL:
        obstore.put(client, "plain", b"x", use_multipart=False)  # no victim of these
    with pytest.raises(error):
        obstore.put(client, kind, b"x" * 1_000_000, mode="create", use_multipart=False)
    stands = kind in [entry["path"] for batch in obstore.list(direct) for entry in batch]
    assert stands == (kind == "reset_after"), "carried out only where the answer alone is lost"
    report = fault_proxy.report()
    assert Counter(report["delivered"]) - before == {kind: 1}
    assert report["left"] == {kind: 0}
    obstore.put(client, "later", b"x", mode="create", use_multipart=False)  # none is left


def test_an_outage_hits_every_request_until_it_ends(client: S3Store, fault_proxy: Proxy) -> None:
    fault_proxy.change(outage="slow_down")
    for _ in range(3):
        with pytest.raises(BaseError, match="SlowDown"):
            obstore.list(client).collect()
    fault_proxy.change(outage=None)
    assert obstore.list(client).collect() == []


def test_a_seed_means_a_sequence() -> None:
    def drawn(seed: int) -> list[str | None]:
        plan = Plan(seed, rate=0.5, left=dict.fromkeys(KINDS, 3))
        return [plan.draw(operation) for operation in ("get", "conditional put", "list") * 60]

    assert drawn(1) == drawn(1) != drawn(2)
    assert set(drawn(1)) == {None, *KINDS}
    assert not set(drawn(1)[::3]) & set(CONDITIONAL), "a GET knows no such answer"


def test_unknown_kinds_are_refused(fault_proxy: Proxy) -> None:
    with pytest.raises(ValueError, match="unknown faults"):
        Plan().change({"left": {"meteor": 1}})
    with pytest.raises(urllib.error.HTTPError):
        fault_proxy.change(outage="meteor")


@pytest.mark.parametrize(
    ("method", "query", "headers", "operation"),
    [
        ("PUT", "", {"If-None-Match": "*"}, "conditional put"),
        ("PUT", "", {}, "put"),
        ("GET", "list-type=2&prefix=a", {}, "list"),
        ("GET", "", {}, "get"),
        ("HEAD", "", {}, "head"),
    ],
)
def test_operations_have_names(method: str, query: str, headers: dict[str, Any], operation: str) -> None:
    assert operation_of(method, query, headers) == operation


def test_the_library_goes_through_it(faulty_bucket: str, fault_proxy: Proxy) -> None:
    before = fault_proxy.report()["passed"]
    storage.put(f"{faulty_bucket}/x", b"x")
    assert fault_proxy.report()["passed"] > before
