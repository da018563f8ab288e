"""Where images and labels come from: the settings, and the one place that knows every source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import model_validator

from dakter.config import Config, setting
from dakter.data import folder, osd, sos
from dakter.data.catalogue import SPLITS, TEST, TRAIN, UNLABELLED, VAL, Catalogue, Entry, Loaded
from dakter.data.simulate import SceneConfig, simulate
from dakter.errors import ConfigError
from dakter.schema import OSD

SIMULATED_SENSOR = "simulated"
# Scenes of a split when its cap is null: a simulator has no "all".
_SCENES = {TRAIN: 512, VAL: 96, TEST: 128}
# Each split draws scenes from its own range of indices, so that no seed makes two splits share a scene.
_RANGE = 1 << 40


class DataConfig(Config):
    """Images and labels. Every count is per sensor."""

    source: Literal["simulate", "osd", "sos", "folder"] = setting(
        "simulate",
        "simulate: simulated scenes, nothing to download; osd, sos: the public sets in their own layouts; folder: your "
        "own images/, masks/ and classes.yaml",
    )
    root: str | None = setting(
        None,
        "folder that holds the set (with train/ and test/ in it for osd and sos); null only for simulate, or where "
        "the tiles already stand",
        unit="path or s3:// URL",
    )
    unlabelled_root: str | None = setting(
        None,
        "folder of further images without masks (sos: with palsar/ and sentinel/ in it); null: none",
        unit="path or s3:// URL",
    )
    sensors: tuple[Literal["palsar", "sentinel"], ...] = setting(
        sos.SENSORS, "which sensors of sos to take; other sources have one", min_length=1
    )
    seed: int = setting(0, "draws the labelled subset and the unlabelled images (simulate: those scenes)")
    split_seed: int = setting(0, "cuts val and test and their caps (simulate: those scenes); leave it through a study")
    val_share: float = setting(
        0.15, "share of train that becomes val, in whole groups of near-duplicates", gt=0, lt=0.9
    )
    test_share: float = setting(
        0.2, "share that becomes test where the source has no test split of its own", gt=0, lt=0.9
    )
    num_train: int | None = setting(
        None, "cap on train images; null: all (simulate: 512 scenes)", unit="images a sensor", ge=1
    )
    num_labelled: int | None = setting(
        None, "cap on train images that keep their labels; null: all", unit="images a sensor", ge=1
    )
    num_unlabelled: int | None = setting(
        0,
        "images without labels taken along: those of unlabelled_root first, then train images beyond num_labelled "
        "with their labels dropped; null: all there are",
        unit="images a sensor",
        ge=0,
    )
    num_val: int | None = setting(
        None, "cap on val images; null: as val_share says (simulate: 96 scenes)", unit="images a sensor", ge=1
    )
    num_test: int | None = setting(
        None, "cap on test images; null: all (simulate: 128 scenes)", unit="images a sensor", ge=1
    )
    duplicate_correlation: float = setting(
        0.9, "two images are near-duplicates above this correlation of their 24x24 thumbnails", gt=0, le=1
    )
    drop_duplicates: bool = setting(
        False, "leave out near-duplicates of test (and, of the unlabelled, of val) instead of reporting them alone"
    )
    simulate: SceneConfig = SceneConfig()

    @model_validator(mode="after")
    def _sound(self) -> DataConfig:
        if len(set(self.sensors)) < len(self.sensors):
            raise ValueError(f"each sensor once in sensors, not {list(self.sensors)}")
        if self.source == "simulate" and self.num_unlabelled is None:
            raise ValueError("a number for num_unlabelled with source simulate, which has no end of scenes")
        if self.source == "simulate" and (self.root or self.unlabelled_root):
            raise ValueError("no root and no unlabelled_root with source simulate; for files say --data.source")
        if self.unlabelled_root and self.num_unlabelled == 0:
            raise ValueError("num_unlabelled above 0 (null: all there are) with unlabelled_root, or no unlabelled_root")
        return self


@dataclass(frozen=True)
class SceneLoader:
    """Renders the scene of an entry; val and test hang on ``split_seed``, the others on ``seed``."""

    config: SceneConfig
    seed: int
    split_seed: int

    def __call__(self, entry: Entry) -> Loaded:
        seed = self.split_seed if entry.split in (VAL, TEST) else self.seed
        scene = simulate(self.config, seed, entry.index)
        return Loaded(scene.image, scene.label, scene.fractions)


def catalogue(config: DataConfig) -> Catalogue:
    """What the source offers, by listing alone: no image is opened.

    Raises:
        ConfigError: no root for a source that needs one.
        DataError: ``classes.yaml`` is missing. Files at fault are in ``Catalogue.faults``.
    """
    if config.source == "simulate":
        return _simulated(config)
    if config.root is None:
        raise ConfigError(
            f"setting data.root is null; expected the folder of the {config.source} set (--data.root DIR). Only "
            "--data.source simulate needs none"
        )
    if config.source == "sos":
        return sos.catalogue(config.root, config.unlabelled_root, config.sensors)
    if config.source == "osd":
        return osd.catalogue(config.root, config.unlabelled_root)
    return folder.catalogue(config.root, config.unlabelled_root)


def _simulated(config: DataConfig) -> Catalogue:
    asked = {TRAIN: config.num_train, VAL: config.num_val, TEST: config.num_test, UNLABELLED: config.num_unlabelled}
    entries = []
    for number, split in enumerate(SPLITS):
        count = asked[split]
        for k in range(_SCENES[split] if count is None else count):
            entries.append(Entry(split, SIMULATED_SENSOR, f"{k:06d}", index=number * _RANGE + k))
    return Catalogue(
        title="simulated C-band VV scenes",
        licence="Apache-2.0",
        citation="dakter.data.simulate, with its sources",
        table=OSD,
        bands=("VV",),
        value_range=(0.0, 255.0),
        sensors=(SIMULATED_SENSOR,),
        entries=tuple(entries),
        loader=SceneLoader(config.simulate, config.seed, config.split_seed),
        dtype=np.dtype(np.uint8),
    )
