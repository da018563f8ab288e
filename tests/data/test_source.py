"""Each layout is loaded as it lies on disk, and every file at fault is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_datasets import CLASSES, half, make_folder, make_osd, make_sos, osd_label, rgb, save, texture

from dakter.data.build import prepare
from dakter.data.catalogue import Catalogue
from dakter.data.source import DataConfig, catalogue
from dakter.data.tiles import TileCorpus, TilesConfig, read_test
from dakter.errors import ConfigError, DataError


def offer(source: str, root: Path, **settings: object) -> Catalogue:
    return catalogue(DataConfig.model_validate({"source": source, "root": str(root), **settings}))


def prepared(root: Path, out: Path, source: str, *, size_px: int = 16, **settings: Any) -> TileCorpus:
    data = DataConfig.model_validate({"source": source, "root": str(root), **settings})
    prepare(data, TilesConfig(size_px=size_px), str(out), should_stop=lambda: False)
    return TileCorpus.open(str(out))


def refused(root: Path, out: Path, source: str, **settings: Any) -> str:
    with pytest.raises(DataError) as caught:
        prepared(root, out, source, **settings)
    assert not out.exists() or not list(out.iterdir()), "something was written before the check"
    return str(caught.value)


def test_sos_pairs_by_number_cuts_masks_at_128_and_keeps_test_apart(tmp_path: Path) -> None:
    made = offer("sos", make_sos(tmp_path, num_train=3, num_test=2))
    assert not made.faults
    assert [(e.split, e.sensor, e.file) for e in made.entries][:5] == [
        ("train", "palsar", "00000"),
        ("train", "palsar", "00001"),
        ("train", "palsar", "00002"),
        ("test", "palsar", "00000"),
        ("test", "palsar", "00001"),
    ]
    item = made.loader(made.entries[0])
    assert item.image.shape == (1, 32, 32)
    assert item.label is not None
    np.testing.assert_array_equal(item.label, half(value=1))


def test_sos_with_one_sensor_and_unlabelled_images(tmp_path: Path) -> None:
    make_sos(tmp_path / "set", num_train=3, num_test=1)
    save(tmp_path / "more/sentinel/00000_sat.jpg", rgb(texture(77)))
    made = offer(
        "sos", tmp_path / "set", sensors=["sentinel"], unlabelled_root=str(tmp_path / "more"), num_unlabelled=None
    )
    assert not made.faults
    assert {e.sensor for e in made.entries} == {"sentinel"}
    assert [e.label for e in made.entries if e.split == "unlabelled"] == [None]


@pytest.mark.parametrize("form", ["labels_1D", "labels"])
def test_osd_in_both_label_forms(tmp_path: Path, form: str) -> None:
    made = offer("osd", make_osd(tmp_path, form, 2, 1))
    assert not made.faults
    assert [(e.split, e.file) for e in made.entries] == [
        ("train", "img_0000"),
        ("train", "img_0001"),
        ("test", "img_0000"),
    ]
    label = made.loader(made.entries[0]).label
    assert label is not None
    assert (label == osd_label()).mean() > 0.9
    assert set(np.unique(label)) == {0, 1, 2, 3, 4}


def test_osd_prefers_class_numbers_to_colours(tmp_path: Path) -> None:
    make_osd(tmp_path, "labels")
    made = offer("osd", make_osd(tmp_path, "labels_1D"))
    assert all(e.label is not None and "labels_1D" in e.label for e in made.entries)


def test_a_folder_of_float_decibels_in_two_bands(tmp_path: Path) -> None:
    table = CLASSES.replace("bands: [VV]", "bands: [VV, VH]\nvalue_range: [-35, 0]")
    root = tmp_path / "set"
    root.mkdir()
    (root / "classes.yaml").write_text(table)
    for k in range(10):
        db = np.stack([texture(k), texture(100 + k)]).astype(np.float32) / 255 * -35
        save(root / f"images/{k}.tif", db)
        save(root / f"masks/{k}.png", half(value=1))
    corpus = prepared(root, tmp_path / "out", "folder", size_px=32)
    assert corpus.manifest.value_range == (-35.0, 0.0)
    assert corpus.manifest.bands == ("VV", "VH")
    train = corpus.read("train")
    assert train.images.dtype == np.uint16
    first = int(train.names[0].rpartition("/")[2])
    expected = texture(first).astype(np.float32) / 255 * -35
    np.testing.assert_allclose(train.images[0, 0] / 65535 * 35 - 35, expected, atol=35 / 65535)


def test_a_folder_with_a_test_split_of_its_own(tmp_path: Path) -> None:
    root = tmp_path / "set"
    make_folder(root / "train", 8)
    make_folder(root / "test", 3)
    (root / "classes.yaml").write_text(CLASSES)
    (root / "train/classes.yaml").unlink()
    (root / "test/classes.yaml").unlink()
    made = offer("folder", root)
    assert sum(e.split == "test" for e in made.entries) == 3


def test_a_flat_folder_has_its_test_cut_off(tmp_path: Path) -> None:
    corpus = prepared(make_folder(tmp_path / "set", 20), tmp_path / "out", "folder", test_share=0.25)
    assert corpus.manifest.counts == {"train": 13, "val": 2, "test": 5, "unlabelled": 0}
    assert len(read_test(corpus).names) == 5


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("value_range: [0, -35]\n", "lower end first"),
        ("colours: []\n", "unknown setting colours"),
    ],
)
def test_classes_yaml_is_strict(tmp_path: Path, change: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        offer("folder", make_folder(tmp_path, 1, change + CLASSES))


def test_a_missing_classes_yaml_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"classes\.yaml"):
        offer("folder", tmp_path)


def test_a_source_on_disk_needs_a_root() -> None:
    with pytest.raises(ConfigError, match=r"data\.root is null"):
        catalogue(DataConfig(source="sos"))


# One fault of each kind in two places: both files must be named, and nothing written.
def test_missing_twins_are_named(tmp_path: Path) -> None:
    root = make_sos(tmp_path / "set")
    (root / "train/palsar/00003_mask.png").unlink()
    (root / "test/sentinel/sat/00001_sat.jpg").unlink()
    told = refused(root, tmp_path / "out", "sos")
    assert "train/palsar/00003_sat.jpg: its mask is missing" in told
    assert "test/sentinel/gt/00001_mask.png: its image is missing" in told
    assert "2 faults" in told


def test_empty_folders_are_named(tmp_path: Path) -> None:
    root = make_sos(tmp_path / "set")
    for folder in ("train/palsar", "test/palsar/sat", "test/palsar/gt"):
        for file in (root / folder).iterdir():
            file.unlink()
    told = refused(root, tmp_path / "out", "sos")
    assert "train/palsar (leave a sensor out with data.sensors): no images" in told
    assert "test/palsar/sat (leave" in told


def test_a_root_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert f"{tmp_path / 'nowhere'}/train/palsar" in refused(tmp_path / "nowhere", tmp_path / "out", "sos")


def test_files_that_do_not_belong_are_named(tmp_path: Path) -> None:
    root = make_sos(tmp_path / "set")
    (root / "train/palsar/notes.txt").write_text("x")
    assert "train/palsar/notes.txt: not expected here" in refused(root, tmp_path / "out", "sos")


def test_unreadable_files_other_sizes_and_unknown_labels_are_all_named(tmp_path: Path) -> None:
    root = make_osd(tmp_path / "set")
    images, labels = root / "train/images", root / "train/labels_1D"
    (images / "img_0000.jpg").write_bytes((images / "img_0000.jpg").read_bytes()[:300])
    (images / "img_0001.jpg").write_bytes(b"")
    (labels / "img_0001.png").write_bytes(b"no image at all")
    save(labels / "img_0002.png", osd_label(40, 70))
    save(labels / "img_0003.png", np.full((40, 72), 9, np.uint8))
    save(images / "img_0004.jpg", rgb(texture(4, 24, 72)))
    save(labels / "img_0004.png", osd_label(24, 72))
    told = refused(root, tmp_path / "out", "osd")
    for line in (
        "train/images/img_0000.jpg: cannot be read",
        "train/images/img_0001.jpg: is empty",
        "train/labels_1D/img_0001.png: cannot be read",
        "train/labels_1D/img_0002.png: 70x40 pixels; expected 72x40",
        "train/labels_1D/img_0003.png: unknown label values 9",
        "train/images/img_0004.jpg: 72x24 pixels; expected 72x40",
    ):
        assert line in told
    assert "6 faults" in told


def test_nan_and_two_files_of_one_name_are_named(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "set", 6, CLASSES.replace("bands: [VV]", "bands: [VV]\nvalue_range: [0, 1]"))
    for k in range(6):
        (root / f"images/a{k}.png").unlink()
        pixels = texture(k).astype(np.float32) / 255
        if k in (2, 5):
            pixels[3, 3] = np.nan
        save(root / f"images/a{k}.tif", pixels)
    told = refused(root, tmp_path / "out", "folder")
    assert "images/a2.tif: holds NaN" in told
    assert "images/a5.tif: holds NaN" in told
    save(root / "images/a1.png", texture(1))
    assert "a1.tif: same name as" in refused(root, tmp_path / "out", "folder")


def test_more_faults_than_fit_a_screen_are_still_all_named(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "set", 45)
    for k in range(45):
        (root / f"images/a{k}.png").write_bytes(b"broken")
    told = refused(root, tmp_path / "out", "folder")
    assert all(f"images/a{k}.png: cannot be read" in told for k in range(45))


def test_simulated_scenes_of_different_splits_are_different(tmp_path: Path) -> None:
    config = DataConfig.model_validate(
        {"num_train": 3, "num_val": 3, "num_test": 3, "num_unlabelled": 3, "simulate": {"size_px": 16}}
    )
    made = catalogue(config)
    images = {made.loader(entry).image.tobytes() for entry in made.entries}
    assert len(images) == len(made.entries) == 12


def test_the_seed_changes_train_scenes_and_leaves_test_scenes() -> None:
    def images(seed: int, split: str) -> list[bytes]:
        config = DataConfig.model_validate({"seed": seed, "num_train": 2, "num_test": 2, "simulate": {"size_px": 16}})
        made = catalogue(config)
        return [made.loader(e).image.tobytes() for e in made.entries if e.split == split]

    assert images(0, "test") == images(1, "test")
    assert not set(images(0, "train")) & set(images(1, "train"))


def test_endless_unlabelled_scenes_are_refused() -> None:
    with pytest.raises(ValueError, match="no end of scenes"):
        DataConfig(num_unlabelled=None)
