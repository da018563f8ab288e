"""A user's own folder, as a whole: what no file shows alone, what would be passed over, and what changed since."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from tiny_datasets import CLASSES, half, make_folder, save, texture

from dakter.data.build import Prepared, prepare
from dakter.data.source import DataConfig, catalogue
from dakter.data.tiles import TilesConfig
from dakter.errors import ConfigError, ConflictError, DataError, StorageError


def make(out: Path, root: Path | None) -> Prepared:
    data = DataConfig.model_validate({"source": "folder", "root": root and str(root)})
    return prepare(data, TilesConfig(size_px=16), str(out), should_stop=lambda: False)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "set")


def test_black_and_white_masks_are_not_taken_for_unlabelled_oil(tmp_path: Path, root: Path) -> None:
    for k in range(12):
        save(root / f"masks/a{k}.png", half(value=255))
    with pytest.raises(DataError, match=r"others are 255, which says 'not labelled'.*write 1 \(oil\) for 255"):
        make(tmp_path / "tiles", root)
    assert not list((tmp_path / "tiles").iterdir())
    save(root / "masks/a3.png", half(value=1))  # 0 and 255 are fine beside it
    assert make(tmp_path / "tiles", root).manifest.counts["train"]


@pytest.mark.parametrize(("value", "reason"), [(0, "is 'sea'"), (1, "is 'oil'"), (255, "no pixel of its masks")])
def test_masks_of_one_class_alone_are_refused(tmp_path: Path, root: Path, value: int, reason: str) -> None:
    for k in range(12):
        save(root / f"masks/a{k}.png", np.full((32, 32), value, np.uint8))
    with pytest.raises(DataError, match=reason):
        make(tmp_path / "tiles", root)


def test_a_class_that_a_split_lacks_is_told(tmp_path: Path, root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / "classes.yaml").write_text(CLASSES + '  - {name: ship, colour: "#994c00"}\n')
    with caplog.at_level(logging.WARNING, "dakter.data"):
        make(tmp_path / "tiles", root)
    assert "train holds no pixel of ship: it cannot be learnt" in caplog.text
    assert "test holds no pixel of ship: it cannot be scored there" in caplog.text


@pytest.mark.parametrize(("top", "stated"), [(1.0, None), (0.3, None), (255.0, "[0, 65535]")])
def test_images_that_fill_next_to_nothing_of_their_range_are_refused(
    tmp_path: Path, top: float, stated: str | None
) -> None:
    root = make_folder(
        tmp_path / "set", classes=CLASSES.replace("bands:", f"value_range: {stated}\nbands:") if stated else CLASSES
    )
    for k in range(12):
        (root / f"images/a{k}.png").unlink()
        save(root / f"images/a{k}.tif", texture(k).astype(np.float32) / 255 * top)
    with pytest.raises(DataError, match=r"images together span .* of the value range"):
        make(tmp_path / "tiles", root)


def test_tiles_of_files_that_changed_since_are_not_gone_on_with(tmp_path: Path, root: Path) -> None:
    made = make(tmp_path / "tiles", root)
    assert make(tmp_path / "tiles", root).already_done
    table = (root / "classes.yaml").read_text()
    (root / "classes.yaml").write_text(table.replace("oil", "tar"))
    with pytest.raises(ConflictError, match=r"1 files .*changed since(.|\n)*classes\.yaml: changed"):
        make(tmp_path / "tiles", root)
    (root / "classes.yaml").write_text(table)
    save(root / "masks/a3.png", np.indices((32, 32)).sum(0).astype(np.uint8) % 2)
    save(root / "images/b.png", texture(77))
    save(root / "masks/b.png", half(value=1))
    (root / "images/a4.png").unlink()
    (root / "masks/a4.png").unlink()
    with pytest.raises(ConflictError) as told:
        make(tmp_path / "tiles", root)
    for line in ("images/a4.png: removed", "images/b.png: added", "masks/a3.png: changed"):
        assert line in str(told.value)
    assert make(tmp_path / "tiles", None).manifest == made.manifest


def test_a_mended_mask_of_the_same_size_is_seen_through_links_too(tmp_path: Path, root: Path) -> None:
    for kind in ("images", "masks"):
        (root / kind).rename(tmp_path / kind)
        (root / kind).symlink_to(tmp_path / kind)
    (tmp_path / "masks/a3.png").unlink()
    save(tmp_path / "masks/a3.tif", half(value=1))
    make(tmp_path / "tiles", root)
    save(tmp_path / "masks/a3.tif", 1 - half(value=1))
    with pytest.raises(ConflictError, match=r"masks/a3\.tif: changed"):
        make(tmp_path / "tiles", root)


def test_each_root_is_compared_by_itself(tmp_path: Path, root: Path, caplog: pytest.LogCaptureFixture) -> None:
    more = tmp_path / "set2"
    for k in range(3):
        save(more / f"u{k}.png", texture(100 + k))
    settings = {"source": "folder", "root": str(root), "unlabelled_root": str(more), "num_unlabelled": None}
    data, tiles = DataConfig.model_validate(settings), TilesConfig(size_px=16)

    def again() -> Prepared:
        return prepare(data, tiles, str(tmp_path / "tiles"), should_stop=lambda: False)

    made = again()
    save(more / "u1.png", texture(500))
    with pytest.raises(ConflictError, match=rf"1 files of {more}/ changed since(.|\n)*- u1\.png: changed"):
        again()
    for path in more.iterdir():
        path.unlink()
    assert again().manifest == made.manifest
    assert f"{more}/: nothing is there any more" in caplog.text


def test_tiles_are_taken_as_they_stand_where_their_source_is_gone(tmp_path: Path, root: Path) -> None:
    made = make(tmp_path / "tiles", root)
    (root / "images").rename(tmp_path / "moved")
    assert make(tmp_path / "tiles", root).manifest == made.manifest
    (root / "classes.yaml").unlink()
    assert make(tmp_path / "tiles", root).manifest == made.manifest


def test_arrays_of_somebody_else_are_not_removed(tmp_path: Path, root: Path) -> None:
    precious = save(tmp_path / "tiles/dev.zarr/precious.png", half())
    with pytest.raises(ConflictError, match=r"dev\.zarr stands there"):
        make(tmp_path / "tiles", root)
    assert precious.exists()


@pytest.mark.parametrize("beside", ["val", "images"])
def test_pairs_that_would_be_passed_over_are_named(tmp_path: Path, root: Path, beside: str) -> None:
    whole = tmp_path / "whole"
    for split in ("train", "test"):
        make_folder(whole / split)
    (whole / "classes.yaml").write_text(CLASSES)
    save(whole / beside / ("images/x.png" if beside == "val" else "x.png"), texture(5))
    faults = catalogue(DataConfig.model_validate({"source": "folder", "root": str(whole)})).faults
    assert any(f"{whole}/{beside}: not read beside train/ and test/" in fault for fault in faults)


def test_sub_folders_are_named_as_such_and_hidden_ones_passed_over(root: Path) -> None:
    save(root / "images/.ipynb_checkpoints/a1-checkpoint.png", texture(1))
    save(root / "images/more/a50.png", texture(50))
    faults = catalogue(DataConfig.model_validate({"source": "folder", "root": str(root)})).faults
    assert [fault.partition(": ")[2] for fault in faults] == [
        f"in a folder of its own; expected files directly in {root}/images"
    ]


def test_a_link_to_nothing_is_named(tmp_path: Path, root: Path) -> None:
    for kind in ("images", "masks"):
        (root / kind / "a3.png").unlink()
        (root / kind / "a3.png").symlink_to(tmp_path / "unmounted" / "a3.png")
    (root / ".#classes.yaml").symlink_to("somebody@host.1234")  # an editor's lock is none of the set
    with pytest.raises(StorageError, match=r"a3\.png links to .*unmounted.*not there"):
        make(tmp_path / "tiles", root)


def test_settings_without_effect_are_refused() -> None:
    for settings, expected in (
        ({"source": "simulate", "root": "/data/mine"}, "no root"),
        ({"source": "folder", "root": "/data/mine", "unlabelled_root": "/data/more"}, "num_unlabelled above 0"),
    ):
        with pytest.raises(ValueError, match=expected):
            DataConfig.model_validate(settings)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (CLASSES.replace("name: oil, colour", "name: oil, color"), "color.*did you mean colour"),
        (CLASSES.replace('{name: oil, colour: "#00ffff"}', "{name: oil}"), "classes.1.colour is missing"),
        (CLASSES.replace('"#00ffff"', "#00ffff"), "needs quotes"),
        (CLASSES.replace("  - {name: oil, colour: ", "  - name: oil\n    colour: #").replace('"}', ""), "needs quotes"),
        (CLASSES.replace("name: oil", "name: sea"), "yaml: expected a different name for each class"),
        (CLASSES + "name: again\n", "'name' stands twice"),
        (CLASSES.replace("name: mine", "name: 2026-01-01"), "a date as text, in quotes"),
    ],
)
def test_mistakes_in_classes_yaml_are_told_in_their_own_terms(root: Path, text: str, reason: str) -> None:
    (root / "classes.yaml").write_text(text)
    with pytest.raises(ConfigError, match=reason) as told:
        catalogue(DataConfig.model_validate({"source": "folder", "root": str(root)}))
    assert "at least 2 items" not in str(told.value)
