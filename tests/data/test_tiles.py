"""The tile corpus: what is written is what is read, whole or not at all, and test stays apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
from tiny_datasets import CLASSES, half, make_folder, make_osd, make_sos, save, texture

from dakter import storage
from dakter.data.build import Prepared, prepare
from dakter.data.source import DataConfig
from dakter.data.tiles import TileCorpus, TilesConfig, read_test
from dakter.errors import ConfigError, ConflictError, DataError, IntegrityError, Stopped
from dakter.schema import IGNORE

SIMULATE = {"num_train": 5, "num_val": 2, "num_test": 2, "num_unlabelled": 3, "simulate": {"size_px": 32}}


def make(out: str | Path, data: dict[str, Any] | None = None, **tiles: Any) -> Prepared:
    config = DataConfig.model_validate(SIMULATE if data is None else data)
    return prepare(config, TilesConfig.model_validate({"size_px": 16, **tiles}), str(out), should_stop=lambda: False)


def folder(root: Path, **settings: Any) -> dict[str, Any]:
    return {"source": "folder", "root": str(root), **settings}


def test_simulated_tiles_are_whole_and_described(tmp_path: Path) -> None:
    manifest = make(tmp_path).manifest
    corpus = TileCorpus.open(str(tmp_path))
    assert corpus.manifest == manifest
    assert manifest.counts == {"train": 5, "val": 2, "test": 2, "unlabelled": 3}
    train, unlabelled = corpus.read("train"), corpus.read("unlabelled")
    assert train.images.shape == (5, 1, 16, 16)
    assert train.fractions is not None
    assert train.fractions.shape == (5, 5, 16, 16)
    np.testing.assert_allclose(train.fractions.sum(1), 1, atol=1e-6)
    assert (unlabelled.labels == IGNORE).all()
    assert unlabelled.fractions is None
    assert unlabelled.images.std() > 0
    groups = np.concatenate([split.groups for split in (train, corpus.read("val"), unlabelled, read_test(corpus))])
    assert len(set(groups.tolist())) == 12
    assert corpus.read("train") is train


def test_statistics_are_those_of_train_on_the_model_scale(tmp_path: Path) -> None:
    manifest = make(tmp_path).manifest
    x = TileCorpus.open(str(tmp_path)).read("train").images.astype(np.float64) / 127.5 - 1
    assert manifest.b_rms == manifest.image_rms == pytest.approx(np.sqrt((x**2).mean()), rel=1e-6)
    assert manifest.b_std == manifest.image_std == pytest.approx(x.std(), rel=1e-6)
    assert sum(manifest.class_shares["train"]) == pytest.approx(1, abs=1e-6)


def test_b_is_one_for_images_of_black_and_white(tmp_path: Path) -> None:
    root = tmp_path / "set"
    root.mkdir()
    (root / "classes.yaml").write_text(CLASSES)
    for k in range(10):
        save(root / f"images/{k}.png", np.random.default_rng(k).choice(np.array([0, 255], np.uint8), (16, 16)))
        save(root / f"masks/{k}.png", half(16, 16, 1))
    manifest = make(tmp_path / "out", folder(root)).manifest
    assert manifest.b_rms == pytest.approx(1.0, abs=1e-6)
    assert manifest.class_shares["train"] == [0.5, 0.5]


def test_xarray_opens_it_with_names_classes_and_ranges(tmp_path: Path) -> None:
    make(tmp_path)
    train = xarray.open_zarr(str(tmp_path / "dev.zarr"), group="train", consolidated=False)
    assert dict(train.sizes) == {"sample": 5, "band": 1, "y": 16, "x": 16, "class": 5}
    assert train["image"].dims == ("sample", "band", "y", "x")
    assert train["fraction"].dims == ("sample", "class", "y", "x")
    assert train["image"].dtype == np.uint8
    assert train.attrs["class_table"]["names"][1] == "oil spill"
    assert train.attrs["value_range"] == [0.0, 255.0]
    assert train.attrs["bands"] == ["VV"]
    assert train["label"].attrs["flag_meanings"].split()[1] == "oil_spill"
    assert not (tmp_path / "dev.zarr/test").exists()
    assert (tmp_path / "test.zarr/test").exists()


def test_arrays_are_sharded_with_checksums(tmp_path: Path) -> None:
    make(tmp_path)
    meta = json.loads((tmp_path / "dev.zarr/train/image/zarr.json").read_text())
    sharding = meta["codecs"][0]
    assert sharding["name"] == "sharding_indexed"
    assert sharding["configuration"]["chunk_shape"] == [1, 1, 16, 16]
    codecs = {codec["name"]: codec.get("configuration") for codec in sharding["configuration"]["codecs"]}
    assert codecs["zstd"] == {"level": 3, "checksum": True}


def test_test_is_read_by_read_test_alone(tmp_path: Path) -> None:
    make(tmp_path)
    corpus = TileCorpus.open(str(tmp_path))
    with pytest.raises(DataError, match="read by evaluation"):
        corpus.read("test")
    assert all(name.startswith("test/") for name in read_test(corpus).names)


def test_the_same_settings_give_the_same_bytes_and_the_second_start_does_nothing(tmp_path: Path) -> None:
    first = make(tmp_path / "a")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*")}
    again = make(tmp_path / "a")
    assert (first.already_done, again.already_done) == (False, True)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*")} == before
    assert make(tmp_path / "b").manifest.digest == first.manifest.digest == again.manifest.digest
    assert make(tmp_path / "c", {**SIMULATE, "seed": 1}).manifest.digest != first.manifest.digest


def test_other_settings_are_a_conflict_that_names_the_difference(tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(ConflictError, match=r"data\.seed: stands 0, asked 4"):
        make(tmp_path, {**SIMULATE, "seed": 4})
    with pytest.raises(ConflictError, match=r"tiles\.size_px: stands 16, asked 32"):
        make(tmp_path, size_px=32)


def test_an_interrupted_start_leaves_no_corpus_and_is_finished_by_the_same_command(tmp_path: Path) -> None:
    calls = iter(range(100))
    data, tiles = DataConfig.model_validate(SIMULATE), TilesConfig(size_px=16)
    with pytest.raises(Stopped):
        prepare(data, tiles, str(tmp_path / "a"), should_stop=lambda: next(calls) > 7)
    assert (tmp_path / "a/dev.zarr/train").exists()
    with pytest.raises(DataError, match="no tile corpus"):
        TileCorpus.open(str(tmp_path / "a"))
    with pytest.raises(ConflictError, match="unfinished corpus"):
        make(tmp_path / "a", {**SIMULATE, "seed": 4})
    assert make(tmp_path / "a").manifest.digest == make(tmp_path / "b").manifest.digest


def test_tiles_that_stand_are_taken_without_their_source(tmp_path: Path) -> None:
    made = make(tmp_path / "out", folder(make_folder(tmp_path / "set")))
    again = make(tmp_path / "out", {"source": "folder"})
    assert again.already_done
    assert again.manifest.digest == made.manifest.digest
    with pytest.raises(ConflictError, match=r"data\.root"):
        make(tmp_path / "out", folder(tmp_path / "another"))


def shards(url: Path, array: str) -> list[Path]:
    return [path for path in (url / "dev.zarr/train" / array / "c").rglob("*") if path.is_file()]


@pytest.mark.parametrize("array", ["image", "label", "group"])
def test_changed_bytes_are_found_when_read(tmp_path: Path, array: str) -> None:
    make(tmp_path)
    (shard,) = shards(tmp_path, array)
    data = bytearray(shard.read_bytes())
    data[min(40, len(data) - 1)] ^= 0x20
    shard.write_bytes(bytes(data))
    with pytest.raises(IntegrityError):
        TileCorpus.open(str(tmp_path)).read("train")


def test_a_lost_shard_is_found_when_read(tmp_path: Path) -> None:
    make(tmp_path)
    shards(tmp_path, "image")[0].unlink()
    with pytest.raises(IntegrityError, match="digest"):
        TileCorpus.open(str(tmp_path)).read("train")


def test_swapped_names_are_found_when_read(tmp_path: Path) -> None:
    make(tmp_path)
    names = storage.read_json(str(tmp_path / "samples.json"))
    names["train"].reverse()
    storage.put_json(str(tmp_path / "samples.json"), names)
    with pytest.raises(IntegrityError, match="digest"):
        TileCorpus.open(str(tmp_path)).read("train")


def test_windows_keep_pixels_groups_and_names(tmp_path: Path) -> None:
    root = make_osd(tmp_path / "set")
    data = {"source": "osd", "root": str(root), "num_unlabelled": None, "num_labelled": 2}
    make(tmp_path / "out", data, size_px=16, window_px=16, overlap_px=2)
    corpus = TileCorpus.open(str(tmp_path / "out"))
    train = corpus.read("train")
    per_image = 3 * 5  # 40 rows and 72 columns in windows of 16 that share 2
    assert len(train.names) == 2 * per_image
    assert train.names[per_image - 1].endswith("#24,56")
    assert len(set(train.groups.tolist())) == 2
    assert (train.labels != IGNORE).all()
    # Each pixel of test counts once, whatever the overlap.
    test = read_test(corpus)
    assert (test.labels != IGNORE).sum() == 3 * 40 * 72


def test_nothing_is_magnified(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "set")
    with pytest.raises(ConfigError, match="nothing is magnified"):
        make(tmp_path / "out", folder(root), size_px=64)
    with pytest.raises(ConfigError, match="nothing is magnified"):
        make(tmp_path / "out", size_px=64)
    with pytest.raises(ConfigError, match=r"tiles\.window_px is 512"):
        make(tmp_path / "out", size_px=8, window_px=512)


def test_leakage_reaches_the_manifest_and_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = make_sos(tmp_path / "set")
    copy = np.ascontiguousarray(np.rot90(texture(503)))  # test/palsar/00003, turned
    save(root / "train/palsar/00005_sat.jpg", np.repeat(copy[..., None], 3, 2))
    manifest = make(tmp_path / "out", {"source": "sos", "root": str(root)}).manifest
    assert manifest.leakage["pairs"]["train-test"] == [["train/palsar/00005", "test/palsar/00003"]]
    assert "train-test 1" in caplog.text
    clean = make(tmp_path / "clean", {"source": "sos", "root": str(root), "drop_duplicates": True}).manifest
    assert clean.leakage["dropped"] == ["train/palsar/00005"]
    assert clean.counts["train"] == manifest.counts["train"] - 1


def test_s3_holds_the_same_corpus(tmp_path: Path, s3_bucket: str) -> None:
    root = make_folder(tmp_path / "set", 8)
    storage.upload_folder(root, f"{s3_bucket}/set")
    local = make(tmp_path / "out", folder(root)).manifest
    data = {"source": "folder", "root": f"{s3_bucket}/set"}
    remote = make(f"{s3_bucket}/tiles", data)
    assert remote.manifest.digest == local.digest
    corpus = TileCorpus.open(f"{s3_bucket}/tiles")
    np.testing.assert_array_equal(
        corpus.read("train").images, TileCorpus.open(str(tmp_path / "out")).read("train").images
    )
    assert make(f"{s3_bucket}/tiles", data).already_done
    (name,) = [key for key in storage.sizes(f"{s3_bucket}/tiles/dev.zarr/train/image") if key.startswith("c/")]
    storage.delete(f"{s3_bucket}/tiles/dev.zarr/train/image/{name}")
    with pytest.raises(IntegrityError):
        TileCorpus.open(f"{s3_bucket}/tiles").read("train")
