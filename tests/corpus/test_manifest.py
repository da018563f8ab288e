"""What is wrong with a corpus is found and named, and no manifest vouches for it."""

from __future__ import annotations

import pytest
from fake_pairs import FakeSampler

from dakter import storage
from dakter.corpus import manifest, status
from dakter.corpus.commit import set_aside, write_shard
from dakter.corpus.layout import CorpusConfig, Layout
from dakter.corpus.shard import compute
from dakter.errors import IntegrityError


@pytest.fixture
def layout(place: str) -> Layout:
    layout = Layout.begin(place, CorpusConfig(samples_per_shard=8).identity(FakeSampler()))
    layout.grow(5)
    for shard in range(4):
        write_shard(layout, shard, compute(FakeSampler(), shard * 8, 8))
    return layout


def test_status_counts_from_storage_alone(layout: Layout) -> None:
    set_aside(layout, 4, attempts=3, error="RuntimeError: no", traceback="...")
    found = status.status(Layout.open(layout.url))
    assert (found["num_samples"], found["num_samples_planned"], found["num_shards_missing"]) == (32, 40, 1)
    assert found["failed"] == [{"shard": 4, "first": 32, "count": 8, "attempts": 3, "error": "RuntimeError: no"}]
    assert found["finalised"] is False
    manifest.finalise(layout)
    assert status.status(layout)["finalised"] is True


def test_a_sound_corpus_has_no_faults(layout: Layout) -> None:
    whole = manifest.finalise(layout)
    found = manifest.verify(layout)
    assert found["faults"] == []
    assert found["uncommitted"] == []
    assert found["digest"] == whole["digest"]


def test_each_kind_of_damage_is_named(layout: Layout) -> None:
    manifest.finalise(layout)
    at = layout.place
    altered = bytearray(storage.read_bytes(at(layout.key("image", 0))))
    altered[50] ^= 1
    storage.put(at(layout.key("image", 0)), bytes(altered))
    storage.delete(at(layout.key("soft_label", 1)))
    storage.put(at(layout.key("image", 2)), storage.read_bytes(at(layout.key("image", 2)))[:-1])
    storage.put(at("data.zarr/image/c.77.0.0.0"), b"work in hand")
    storage.put(at("data.zarr/notes.txt"), b"hello")
    storage.delete(at(layout.commit_key(3)))
    found = manifest.verify(layout)
    kinds = [(fault["kind"], fault["shard"]) for fault in found["faults"]]
    assert kinds == [("altered", 0), ("missing", 1), ("truncated", 2), ("foreign", None), ("manifest", 3)]
    assert found["uncommitted"] == [
        "data.zarr/image/c.3.0.0.0",
        "data.zarr/image/c.77.0.0.0",
        "data.zarr/soft_label/c.3.0.0.0",
    ]
    before = storage.read_bytes(at("manifest.json"))
    with pytest.raises(IntegrityError, match="3 faults"):
        manifest.finalise(layout)
    assert storage.read_bytes(at("manifest.json")) == before


def test_a_shard_in_anothers_place_is_named_even_with_a_fitting_record(layout: Layout) -> None:
    for name in ("image", "soft_label"):
        storage.put(layout.place(layout.key(name, 2)), storage.read_bytes(layout.place(layout.key(name, 1))))
    kinds = {fault["kind"] for fault in manifest.verify(layout)["faults"]}
    assert kinds <= {"altered", "truncated"}
    assert kinds
    one, two = (storage.read_json(layout.place(layout.commit_key(shard))) for shard in (1, 2))
    objects = {name: {**entry, "key": layout.key(name, 2)} for name, entry in one["objects"].items()}
    storage.put_json(layout.place(layout.commit_key(2)), {**two, "objects": objects})
    assert [(fault["kind"], fault["shard"]) for fault in manifest.verify(layout)["faults"]] == [("duplicated", 2)]
