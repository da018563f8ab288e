"""Fixtures shared by all tests: a real S3 endpoint (moto's server) with one fresh bucket a test."""

from __future__ import annotations

import functools
import os
import secrets
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from ray_head import Head, start_head
from s3_recorder import Asked, Recorder, recording

from dakter import storage
from jobs.suites._fault_proxy import Proxy, running

if TYPE_CHECKING:
    from aws_stacks import Roles

# One thread a process: tests run side by side with Ray's own processes on two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Ray settles on a way to authenticate once for the life of a process, whoever looks at it first: let it be, in whatever
# order tests come, the one of a Ray that a job starts (jobs/_ray.py).
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


@pytest.fixture(scope="session")
def _s3() -> Iterator[tuple[Recorder, str]]:
    with recording() as server:
        yield server


@pytest.fixture(scope="session")
def s3_server(_s3: tuple[Recorder, str]) -> str:
    """Endpoint URL of an S3 server on loopback."""
    return _s3[1]


@pytest.fixture
def s3_requests(_s3: tuple[Recorder, str]) -> Asked:
    """What the S3 server was asked for since the test began, by the access key ids that signed it."""
    return functools.partial(_s3[0].requests, since=len(_s3[0].seen))


@pytest.fixture(scope="session")
def roles() -> Roles:
    """What the roles of the deployed templates may do. Of a wider scope than any bucket, since deploying empties S3."""
    from aws_stacks import deployed_roles

    return deployed_roles()


@pytest.fixture
def s3_bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """``s3://<fresh bucket>``; AWS_* point every client of this process and its children at the server."""
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()
    name = f"dakter-{uuid.uuid4().hex[:12]}"
    s3fs.S3FileSystem(use_listings_cache=False).mkdir(name)
    yield f"s3://{name}"
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="session")
def fault_proxy(s3_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A proxy before the S3 server, in its own process, that fails on demand."""
    with running(s3_server, tmp_path_factory.mktemp("proxy")) as proxy:
        yield proxy


@pytest.fixture
def faulty_bucket(s3_bucket: str, fault_proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """``s3_bucket`` with every client going through the proxy; waits between tries are short."""
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", fault_proxy.url)
    monkeypatch.setenv("DAKTER_S3_TIMEOUT_S", "2")
    monkeypatch.setattr(storage, "WAITS_S", (0.01,) * 9)
    s3fs.S3FileSystem.clear_instance_cache()
    fault_proxy.change(rate=0, left={}, outage=None)
    yield s3_bucket
    fault_proxy.change(rate=0, left={}, outage=None)


@pytest.fixture(scope="session")
def tiny_tiles(tmp_path_factory: pytest.TempPathFactory) -> str:
    """URL of the tile corpus of the preset ``tiny``: a few small simulated scenes in five classes."""
    from jobs import _cli, prepare

    out = tmp_path_factory.mktemp("tiny")
    settings = _cli.resolve(prepare.PrepareSettings, preset="tiny", overrides={"out": str(out)})
    prepare.run(settings, _cli.Stop())
    return settings.place("tiles")


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """URLs of a tile corpus and of a corpus of pairs from which students learn, see tests/copied_pairs.py."""
    from copied_pairs import make_sources

    return make_sources(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="session")
def mixed_sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """As ``sources``, with 6 unlabelled tiles, a model, and the corpus of them that it labelled."""
    from copied_pairs import make_sources

    return make_sources(tmp_path_factory.mktemp("mixed"), num_unlabelled=6)


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL at which a corpus may be made: on the local disk, then on S3."""
    return str(tmp_path / "corpus") if request.param == "local" else f"{request.getfixturevalue('s3_bucket')}/a/corpus"


@pytest.fixture(scope="module")
def ray_head() -> Iterator[Head]:
    """A Ray head started from this checkout, as an operator does it; see tests/ray_head.py."""
    yield from start_head()
