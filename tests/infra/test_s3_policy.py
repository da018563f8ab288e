"""The S3 calls that the jobs really make, recorded on the wire, against what the roles allow; moto enforces nothing.

Three clients talk to S3, and only the wire sees them all: s3fs (dakter.storage, zarr), obstore (dakter.corpus) and
Arrow's C++ client (checkpoints of Ray Train and Ray Tune).
"""

from __future__ import annotations

from pathlib import Path

import pytest
from aws_stacks import JOB_ROLES, Roles, allowed, beyond_jobs
from fake_pairs import FakeSampler
from s3_recorder import Asked

from dakter import storage
from dakter.corpus import manifest
from dakter.corpus.commit import set_aside, write_shard
from dakter.corpus.layout import CorpusConfig, Layout
from dakter.corpus.reader import CorpusReader
from dakter.corpus.shard import compute
from dakter.corpus.status import status


def use_storage(url: str, folder: Path) -> None:
    """Every function of dakter.storage that reaches S3."""
    storage.check_writable(url)
    storage.put_new(f"{url}/claim.json", b"{}")
    with pytest.raises(FileExistsError):
        storage.put_new(f"{url}/claim.json", b"{}")
    storage.put_json(f"{url}/x.json", {})
    assert storage.read_json(f"{url}/x.json") == {}
    assert storage.exists(url)
    assert not storage.exists(f"{url}/nothing")
    storage.put(f"{url}/large.bin", bytes(101 * 2**20))  # s3fs sends this in parts
    (folder / "w.bin").write_bytes(b"w")
    storage.upload_folder(folder, f"{url}/model")
    storage.download_folder(f"{url}/model", folder / "back")
    storage.delete(f"{url}/x.json")
    storage.remove_folder(url)
    assert storage.sizes(url) == {}


def use_corpus(url: str) -> None:
    """A corpus from its beginning to a reader, with a shard that was given up and one that was made anew."""
    import xarray

    layout = Layout.begin(f"{url}/corpus", CorpusConfig(num_samples=16, samples_per_shard=8).identity(FakeSampler()))
    layout.grow(2)
    arrays = [compute(FakeSampler(), shard * 8, 8) for shard in range(2)]
    for shard in range(2):
        write_shard(layout, shard, arrays[shard])
    storage.delete(layout.place(layout.commit_key(1)))
    other = compute(FakeSampler(seed=1), 8, 8)
    write_shard(layout, 1, other)  # replaces the object that stands there by If-Match
    set_aside(layout, 1, attempts=1, error="e", traceback="t")
    manifest.finalise(layout)
    assert manifest.verify(layout)["faults"] == []
    assert status(layout)["num_shards"] == 2
    CorpusReader(f"{url}/corpus").sample([1, 9])
    xarray.open_zarr(storage.zarr_store(f"{url}/corpus/data.zarr"), consolidated=False)["image"][:1].load()


def use_ray_train(url: str, folder: Path) -> None:
    """Checkpoints as Ray Train puts, gets and drops them."""
    from ray.train import Checkpoint
    from ray.train.v2._internal.execution.storage import StorageContext, delete_fs_path

    context = StorageContext(storage_path=f"{url}/model.checkpoints", experiment_dir_name="train-1")
    (folder / "state.bin").write_bytes(bytes(6 * 2**20))
    kept = context.persist_current_checkpoint(Checkpoint(str(folder)), "checkpoint-1")
    with kept.as_directory() as back:
        assert (Path(back) / "state.bin").stat().st_size == 6 * 2**20
    delete_fs_path(kept.filesystem, kept.path)


def test_what_jobs_ask_of_s3_is_allowed_and_nothing_allowed_is_unused(
    roles: Roles, s3_bucket: str, s3_requests: Asked, tmp_path: Path
) -> None:
    url = f"{s3_bucket}/runs/a"
    for part in ("storage", "train"):
        (tmp_path / part).mkdir()
    use_storage(url, tmp_path / "storage")
    use_corpus(url)
    use_ray_train(url, tmp_path / "train")
    asked = s3_requests()
    assert beyond_jobs(asked, roles, s3_bucket) == set()
    for role in JOB_ROLES:
        held = {name for statement in roles.statements[role] for name in statement.actions if name.startswith("s3:")}
        # A multipart upload is aborted only when it fails in the middle, which nothing here does.
        assert held - {request.action for request in asked} == {"s3:AbortMultipartUpload"}


def test_a_worker_may_do_nothing_else(roles: Roles) -> None:
    worker, bucket = roles.statements["WorkerRole"], f"arn:aws:s3:::{roles.bucket}"
    assert {name.split(":")[0] for statement in worker for name in statement.actions} == {"s3"}
    assert allowed(worker, "s3:GetObject", f"{bucket}/data/sos/a.png")
    for key in ("mlflow/1/model", "data/sos/a.png", "elsewhere"):
        assert not allowed(worker, "s3:PutObject", f"{bucket}/{key}")
        assert not allowed(worker, "s3:DeleteObject", f"{bucket}/{key}")
    assert not allowed(worker, "s3:GetObject", f"{bucket}/mlflow/1/model")
    assert not allowed(worker, "s3:GetObject", "arn:aws:s3:::another-bucket/runs/a")
    assert not allowed(worker, "s3:ListBucket", bucket, s3_prefix="mlflow/")
    assert not allowed(worker, "s3:ListBucket", "arn:aws:s3:::another-bucket", s3_prefix="runs/")
    for name in ("DeleteObjectVersion", "PutObjectAcl", "PutBucketPolicy", "PutLifecycleConfiguration", "DeleteBucket"):
        assert not allowed(worker, f"s3:{name}", bucket)
        assert not allowed(worker, f"s3:{name}", f"{bucket}/runs/a")


def test_a_request_that_is_not_allowed_would_be_seen_with_its_signer(
    roles: Roles, s3_bucket: str, s3_requests: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    s3fs.S3FileSystem.clear_instance_cache()
    storage.put(f"{s3_bucket}/elsewhere/x", b"x")
    assert {request.key for request in beyond_jobs(s3_requests("somebody"), roles, s3_bucket)} == {"elsewhere/x"}
    assert s3_requests("somebody") == s3_requests()
    assert s3_requests("somebody else") == []
