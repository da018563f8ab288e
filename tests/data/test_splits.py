"""Who goes into which split."""

from __future__ import annotations

import numpy as np
import pytest

from dakter.data.catalogue import Entry
from dakter.data.source import DataConfig
from dakter.data.splits import Assignment, assign
from dakter.errors import DataError


def entries(train: int = 40, test: int = 10, unlabelled: int = 8, sensors: tuple[str, ...] = ("a", "b")) -> list[Entry]:
    counts = {"train": train, "test": test, "unlabelled": unlabelled}
    return [Entry(split, s, f"{k:04d}") for split, count in counts.items() for s in sensors for k in range(count)]


def row(all_: list[Entry], split: str, sensor: str, number: int) -> int:
    return all_.index(Entry(split, sensor, f"{number:04d}"))


def split(all_: list[Entry], pairs: list[tuple[int, int]] = (), **settings: object) -> Assignment:  # type: ignore[assignment]
    config = DataConfig.model_validate({"source": "sos", **settings})
    return assign(tuple(all_), np.array(list(pairs), np.int64).reshape(-1, 2), config)


def files(made: Assignment, name: str) -> set[tuple[str, str]]:
    return {(m.entry.sensor, m.entry.file) for m in made.members[name]}


def test_val_is_cut_from_train_by_sensor_and_nothing_is_lost_or_shared() -> None:
    made = split(entries())
    assert len(files(made, "val")) == 2 * 6
    assert {s for s, _ in files(made, "val")} == {"a", "b"}
    assert not files(made, "train") & files(made, "val")
    assert len(files(made, "train") | files(made, "val")) == 80
    names = [m.name for members in made.members.values() for m in members]
    assert len(set(names)) == len(names)


def test_a_group_never_spans_train_and_val() -> None:
    all_ = entries(train=60, sensors=("a",))
    pairs = [(row(all_, "train", "a", 3 * k), row(all_, "train", "a", 3 * k + 1)) for k in range(20)]
    seen = 0
    for seed in range(10):
        made = split(all_, pairs, split_seed=seed)
        val, train = files(made, "val"), files(made, "train")
        for k in range(20):
            twins = {("a", f"{3 * k:04d}"), ("a", f"{3 * k + 1:04d}")}
            assert twins <= val or twins <= train
            seen += twins <= val
        assert made.leakage["num_pairs"]["train-val"] == 0
    assert seen > 0


def test_group_numbers_are_unique_across_splits_and_shared_by_twins() -> None:
    all_ = entries(sensors=("a",))
    i, j = row(all_, "test", "a", 1), row(all_, "test", "a", 2)
    made = split(all_, [(i, j)])
    groups = {name: [m.group for m in members] for name, members in made.members.items()}
    test = {m.entry.file: m.group for m in made.members["test"]}
    assert test["0001"] == test["0002"]
    assert len(set(test.values())) == 9
    assert not set(groups["train"]) & set(groups["test"])
    assert not set(groups["train"]) & set(groups["val"])


def test_the_labelled_subset_is_drawn_by_seed_nested_and_leaves_val_and_test_alone() -> None:
    few, more, other = (split(entries(), num_labelled=n, seed=s) for n, s in ((5, 0), (10, 0), (5, 1)))
    assert len(files(few, "train")) == 10
    assert files(few, "train") < files(more, "train")
    assert files(few, "train") != files(other, "train")
    for name in ("val", "test"):
        assert files(few, name) == files(more, name) == files(other, name)


def test_unlabelled_takes_the_given_first_then_the_surplus_of_train() -> None:
    made = split(entries(), num_labelled=5, num_unlabelled=12)
    mine = [m for m in made.members["unlabelled"] if m.entry.sensor == "a"]
    assert sorted(m.entry.split for m in mine) == ["train"] * 4 + ["unlabelled"] * 8
    assert not {m.entry for m in mine} & {m.entry for m in made.members["train"]}
    assert not {m.entry for m in mine} & {m.entry for m in made.members["val"]}
    assert made.leakage["num_unlabelled_from_train"] == 8
    assert not split(entries(), num_labelled=5).members["unlabelled"]
    assert len(split(entries(), num_labelled=5, num_unlabelled=None).members["unlabelled"]) == 2 * (8 + 29)


def leaking() -> tuple[list[Entry], list[tuple[int, int]]]:
    all_ = entries(sensors=("a",))
    test = row(all_, "test", "a", 0)
    return all_, [(row(all_, "train", "a", 7), test), (test, row(all_, "unlabelled", "a", 2))]


def test_leakage_is_reported_with_names() -> None:
    all_, pairs = leaking()
    made = split(all_, pairs, num_unlabelled=None)
    assert made.leakage["num_pairs"]["train-test"] == 1
    assert made.leakage["pairs"]["train-test"] == [["train/a/0007", "test/a/0000"]]
    assert made.leakage["pairs"]["unlabelled-test"] == [["unlabelled/a/0002", "test/a/0000"]]
    assert made.leakage["num_dropped"] == 0


def test_leaking_images_are_never_made_val() -> None:
    all_, pairs = leaking()
    for seed in range(12):
        assert ("a", "0007") not in files(split(all_, pairs, val_share=0.8, split_seed=seed), "val")


def test_leaking_images_can_be_dropped_from_the_training_side() -> None:
    all_, pairs = leaking()
    made = split(all_, pairs, num_unlabelled=None, drop_duplicates=True)
    assert set(made.leakage["num_pairs"].values()) == {0}
    assert made.leakage["dropped"] == ["train/a/0007", "unlabelled/a/0002"]
    assert len(made.members["test"]) == 10
    assert ("a", "0007") not in files(made, "train") | files(made, "val")
    assert ("a", "0002") not in files(made, "unlabelled")


def test_unlabelled_twins_of_val_are_dropped_too() -> None:
    all_ = entries(sensors=("a",), unlabelled=40)
    pairs = [(row(all_, "train", "a", k), row(all_, "unlabelled", "a", k)) for k in range(40)]
    told = split(all_, pairs, num_unlabelled=None)
    assert told.leakage["num_pairs"]["unlabelled-val"] == 6
    dropped = split(all_, pairs, num_unlabelled=None, drop_duplicates=True)
    assert dropped.leakage["num_pairs"]["unlabelled-val"] == 0
    assert len(dropped.members["unlabelled"]) == 34


def test_a_source_without_test_has_one_cut_off() -> None:
    made = split(entries(test=0), test_share=0.25)
    assert len(files(made, "test")) == 20
    assert not files(made, "test") & (files(made, "train") | files(made, "val"))


def test_caps_hold_for_each_sensor() -> None:
    made = split(entries(), num_train=9, num_val=3, num_test=4)
    assert {name: len(members) for name, members in made.members.items()} == {
        "train": 18,
        "val": 6,
        "test": 8,
        "unlabelled": 0,
    }


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(DataError, match="the train split would be empty"):
        split(entries(train=1, sensors=("a",)))
