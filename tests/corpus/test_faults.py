"""Every way in which a store or a disk fails: nothing is lost, altered or half-written, and it is told what failed."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_pairs import FakeSampler

from dakter import storage
from dakter.corpus import manifest, status
from dakter.corpus.commit import write_shard
from dakter.corpus.layout import CorpusConfig, Layout
from dakter.corpus.shard import Arrays, compute
from dakter.errors import ConfigError, DataError, StorageError, of_environment
from jobs.suites._fault_proxy import CONDITIONAL, KINDS, Proxy

CONFIG = CorpusConfig(num_samples=32, samples_per_shard=8)
WHOLE = tuple(kind for kind in KINDS if kind != "timeout")


def arrays(shard: int) -> Arrays:
    return compute(FakeSampler(), shard * 8, 8)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Digest of the corpus as a plain loop makes it."""
    layout = Layout.begin(str(tmp_path_factory.mktemp("plain")), CONFIG.identity(FakeSampler()))
    for shard in range(4):
        write_shard(layout, shard, arrays(shard))
    return str(manifest.finalise(layout)["digest"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_at_any_step_changes_nothing(
    kind: str, undisturbed: str, faulty_bucket: str, fault_proxy: Proxy
) -> None:
    count = 2 if kind == "timeout" else 24
    before = fault_proxy.change(rate=0.4, left={kind: count})["delivered"].get(kind, 0)
    layout = Layout.begin(f"{faulty_bucket}/corpus", CONFIG.identity(FakeSampler()))
    layout.grow(4)
    storage.put(layout.place(layout.key("image", 1)), b"left by a writer that died")
    for shard in range(4):
        outcome = write_shard(layout, shard, arrays(shard))
        assert outcome.written, "nobody else is there"
    assert manifest.finalise(layout)["digest"] == undisturbed
    assert status.status(layout)["num_shards_missing"] == 0
    delivered = fault_proxy.change(rate=0)["delivered"].get(kind, 0) - before
    assert delivered == count if kind == "timeout" else delivered >= 5
    found = manifest.verify(layout)
    assert (found["digest"], found["faults"], found["uncommitted"]) == (undisturbed, [], [])


def test_all_kinds_at_once_change_nothing(undisturbed: str, faulty_bucket: str, fault_proxy: Proxy) -> None:
    fault_proxy.change(rate=0.4, left=dict.fromkeys(WHOLE, 8))
    layout = Layout.begin(f"{faulty_bucket}/corpus", CONFIG.identity(FakeSampler()))
    for shard in (3, 1, 2, 0):
        write_shard(layout, shard, arrays(shard))
    assert manifest.finalise(layout)["digest"] == undisturbed


@pytest.mark.parametrize("kind", ["forbidden", "slow_down", "reset_before"])
def test_a_lasting_fault_is_told_and_later_the_shard_is_committed(
    kind: str, faulty_bucket: str, fault_proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "WAITS_S", (0.01, 0.01))
    layout = Layout.begin(f"{faulty_bucket}/corpus", CONFIG.identity(FakeSampler()))
    write_shard(layout, 0, arrays(0))
    fault_proxy.change(outage=kind)
    for attempt in (lambda: write_shard(layout, 1, arrays(1)), layout.committed, lambda: storage.delete(layout.url)):
        with pytest.raises(StorageError, match=f"{faulty_bucket}/corpus") as raised:
            attempt()
        assert of_environment(raised.value)
    fault_proxy.change(outage=None)
    assert layout.committed() == [0]
    assert write_shard(layout, 1, arrays(1)).written
    assert layout.committed() == [0, 1]


@pytest.mark.parametrize("kind", WHOLE)
def test_plain_objects_bear_every_fault(kind: str, faulty_bucket: str, fault_proxy: Proxy) -> None:
    place = f"{faulty_bucket}/store"
    names = [f"{number}.bin" for number in range(5)]
    fault_proxy.change(rate=0.4, left={kind: 99})
    for name in names:
        storage.put(storage.join(place, name), name.encode())
    assert storage.sizes(place) == dict.fromkeys(names, 5)
    assert [storage.read_bytes(storage.join(place, name)) for name in names] == [name.encode() for name in names]
    assert storage.exists(storage.join(place, names[0]))
    storage.delete(storage.join(place, names[0]))
    assert not storage.exists(storage.join(place, names[0]))
    with pytest.raises(FileExistsError):
        storage.put_new(storage.join(place, names[1]), b"other")
    assert storage.read_bytes(storage.join(place, names[1])) == names[1].encode()


@pytest.mark.parametrize("kind", CONDITIONAL)
def test_something_stands_there_is_believed_only_where_something_stands(
    kind: str, faulty_bucket: str, fault_proxy: Proxy
) -> None:
    fault_proxy.change(rate=1, left={kind: 3})
    storage.put_new(f"{faulty_bucket}/claim", b"mine")
    assert storage.read_bytes(f"{faulty_bucket}/claim") == b"mine"
    assert fault_proxy.report()["left"] == {kind: 0}


def test_the_timeout_is_a_setting_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAKTER_S3_TIMEOUT_S", "soon")
    with pytest.raises(ConfigError, match="DAKTER_S3_TIMEOUT_S is 'soon'"):
        storage.request_timeout_s()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], check=False, capture_output=True
        ).returncode
    ):
        pytest.skip("a small disk needs the right to mount one")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_told_and_leaves_nothing_half_written(small_disk: Path, undisturbed: str) -> None:
    layout = Layout.begin(str(small_disk / "corpus"), CONFIG.identity(FakeSampler()))
    write_shard(layout, 0, arrays(0))
    free = os.statvfs(small_disk)
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * ((free.f_bavail - 1) * free.f_frsize))
    with pytest.raises(StorageError, match=r"No space left.*free some space") as raised:
        write_shard(layout, 1, arrays(1))
    assert of_environment(raised.value)
    assert not list(small_disk.rglob("*.tmp")), "nothing half-written"
    assert layout.committed() == [0]
    assert manifest.verify(layout)["faults"] == []
    filler.unlink()
    for shard in (1, 2, 3):
        assert write_shard(layout, shard, arrays(shard)).written
    assert manifest.finalise(layout)["digest"] == undisturbed


def test_errors_of_the_environment_are_told_from_those_of_the_work() -> None:
    theirs = [StorageError("503"), MemoryError(), OSError(errno.ENOSPC, "full"), ConnectionResetError(), TimeoutError()]
    assert all(of_environment(error) for error in theirs)
    ours = [RuntimeError("CUDA error"), DataError("shape"), FileNotFoundError("model"), OSError(errno.EINVAL, "no")]
    assert not any(of_environment(error) for error in ours)
