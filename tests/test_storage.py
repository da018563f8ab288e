"""Whole objects on a local disk and on S3: the same promises in both places."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from dakter import storage
from dakter.errors import IntegrityError, StorageError


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "store")
    return storage.join(str(request.getfixturevalue("s3_bucket")), "store")


def test_put_replaces_and_lists(root: str) -> None:
    storage.put(storage.join(root, "a/b.bin"), b"one")
    storage.put(storage.join(root, "a/b.bin"), b"other")
    storage.put(storage.join(root, "c.bin"), b"")
    assert storage.read_bytes(storage.join(root, "a/b.bin")) == b"other"
    assert storage.sizes(root) == {"a/b.bin": 5, "c.bin": 0}


def test_nothing_there(root: str) -> None:
    assert storage.sizes(root) == {}
    assert not storage.exists(storage.join(root, "x"))
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(storage.join(root, "x"))
    storage.delete(storage.join(root, "x"))


def test_of_many_first_writers_exactly_one_wins(root: str) -> None:
    url, wins = storage.join(root, "claim.json"), []
    barrier = threading.Barrier(8)

    def claim(number: int) -> None:
        barrier.wait()
        try:
            storage.put_new(url, str(number).encode())
            wins.append(number)
        except FileExistsError:
            pass

    threads = [threading.Thread(target=claim, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wins) == 1
    assert storage.read_bytes(url) == str(wins[0]).encode()


def test_folders_travel_whole(root: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "deep/x.bin").write_bytes(b"x")
    (source / "y.bin").write_bytes(b"yy")
    storage.upload_folder(source, root)
    got = storage.download_folder(root, tmp_path / "back")
    assert (got / "deep/x.bin").read_bytes() == b"x"
    assert (got / "y.bin").read_bytes() == b"yy"
    storage.remove_folder(root)
    assert storage.sizes(root) == {}


def test_json_that_was_cut_short_is_told(root: str) -> None:
    storage.put(storage.join(root, "x.json"), b'{"a": ')
    with pytest.raises(IntegrityError, match="cut short"):
        storage.read_json(storage.join(root, "x.json"))


def test_a_bucket_that_is_not_there_is_told_before_any_work(s3_bucket: str) -> None:
    with pytest.raises((StorageError, FileNotFoundError), match="no-such-bucket-here"):
        storage.check_writable("s3://no-such-bucket-here/run")


def test_a_folder_without_permission_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StorageError, match="writing failed"):
        storage.check_writable(str(tmp_path / "file"))


def test_a_failed_write_leaves_the_old_object_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = str(tmp_path / "x.bin")
    storage.put(url, b"old")

    def broken(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", broken)
    with pytest.raises(StorageError, match="free some space"):
        storage.put(url, b"new")
    assert storage.read_bytes(url) == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["x.bin"]
