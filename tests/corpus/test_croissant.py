"""The Croissant description says what the corpus is, to any reader of the format, and says the same every time."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import mlcroissant
import pytest
from absl import logging as absl_logging
from fake_pairs import FakeSampler

from dakter import storage
from dakter.corpus import croissant, manifest
from dakter.corpus.commit import write_shard
from dakter.corpus.layout import CorpusConfig, Layout
from dakter.corpus.reader import CorpusReader
from dakter.corpus.shard import compute
from dakter.errors import DataError

PROVENANCE = {"source": "Sea of Nowhere", "licence": "CC-BY-4.0", "citation": "N. N. 2020", "tiles_digest": "abc"}


def begin(url: str, **provenance: str) -> Layout:
    identity = CorpusConfig(samples_per_shard=8).identity(FakeSampler())
    layout = Layout.begin(url, identity, provenance={**PROVENANCE, **provenance})
    layout.grow(4)
    return layout


def fill(layout: Layout, shards: range, when: float = 1.7e9) -> dict[str, Any]:
    for shard in shards:
        write_shard(
            layout, shard, compute(FakeSampler(), shard * 8, 8), functools.partial(dict, committed_at=when + shard)
        )
    return manifest.finalise(layout)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = begin(str(tmp_path / "corpus"))
    fill(layout, range(3))
    return layout


def loaded(where: Path | dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The description as mlcroissant takes it; fails on its errors and on anything that it warns of."""
    warnings: list[str] = []
    monkeypatch.setattr(absl_logging, "warning", lambda text, *_: warnings.append(text))
    dataset = mlcroissant.Dataset(jsonld=copy.deepcopy(where) if isinstance(where, dict) else where)
    assert warnings == []
    assert not dataset.metadata.issues.warnings
    return dataset


def test_mlcroissant_takes_it_without_a_warning(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    assert croissant.write(layout) is True
    described = layout.read_json("croissant.json")
    found = layout.read_json("manifest.json")
    metadata = loaded(described, monkeypatch).metadata
    assert metadata.version == f"2.3.0+{found['digest'][:12]}"
    assert metadata.license == ["https://spdx.org/licenses/CC-BY-4.0"]
    assert metadata.date_published.isoformat() == "2023-11-14T22:13:22+00:00"  # of shard 2, the last
    assert metadata.description.startswith("24 synthetic pairs of a SAR image (vv; 8 x 8 pixels)")
    fields = {field.id: field for record_set in metadata.record_sets for field in record_set.fields}
    assert fields["samples/image"].array_shape_tuple == (1, 8, 8)
    assert fields["samples/soft_label"].array_shape_tuple == (5, 8, 8)
    assert str(fields["samples/soft_label"].data_types[0]).endswith("croissant/UInt8")


def test_what_mlcroissant_would_warn_of_fails_here(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    croissant.write(layout)
    described = layout.read_json("croissant.json")
    with pytest.raises(AssertionError, match=r"MAJOR\.MINOR\.PATCH: 3f2a"):
        loaded({**described, "version": "3f2a"}, monkeypatch)


def test_its_records_are_read_by_a_general_reader(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    croissant.write(layout)
    found = layout.read_json("manifest.json")
    dataset = loaded(Path(layout.place("croissant.json")), monkeypatch)
    rows = list(dataset.records("shards"))
    assert [row["shards/first"] for row in rows] == [0, 8, 16]
    hashes = [row["shards/soft_label_sha256"].decode() for row in rows]
    assert hashes == [row["decoded_sha256"]["soft_label"] for row in found["ranges"]]
    classes = list(dataset.records("classes"))
    assert [row["classes/name"] for row in classes] == list(FakeSampler.content.class_table.names)
    assert [row["classes/share"] for row in classes] == found["class_shares"]


def test_files_are_described_by_their_hashes_and_patterns(layout: Layout) -> None:
    croissant.write(layout)
    distribution = {entry["@id"]: entry for entry in layout.read_json("croissant.json")["distribution"]}
    singles = {key: entry for key, entry in distribution.items() if entry["@type"] == "cr:FileObject"}
    assert set(singles) == {"manifest.json", "identity.json", "data.zarr/zarr.json"}
    for key, entry in singles.items():
        data = storage.read_bytes(layout.place(key))
        assert entry["contentUrl"] == key
        assert (entry["sha256"], entry["contentSize"]) == (hashlib.sha256(data).hexdigest(), f"{len(data)} B")
    keys = storage.sizes(layout.url)
    patterns = [
        re.compile(re.escape(pattern).replace(r"\*", "[^/]*"))
        for key in ("shard-objects", "array-documents", "commits")
        for pattern in distribution[key]["includes"]
    ]
    in_sets = {key for key in keys if any(pattern.fullmatch(key) for pattern in patterns)}
    assert in_sets | set(singles) | {"croissant.json"} == set(keys)
    assert len(in_sets) == 11


def test_synthetic_data_are_marked_for_machines(layout: Layout) -> None:
    croissant.write(layout)
    described = layout.read_json("croissant.json")
    assert described["digitalSourceType"] == {
        "@id": "sc:TrainedAlgorithmicMediaDigitalSource",
        "sameAs": "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia",
    }
    assert described["prov:wasDerivedFrom"]["@id"] == "urn:dakter:tiles:abc"
    assert described["prov:wasDerivedFrom"]["prov:label"] == "Sea of Nowhere"
    assert described["prov:wasGeneratedBy"]["prov:used"]["@id"] == "urn:dakter:model:fake"
    assert described["citation"] == "N. N. 2020"
    assert described["rai:annotationsPerItem"].startswith("0 by people")
    assert "CC-BY-4.0" in described["conditionsOfAccess"]


def test_equal_corpora_have_equal_descriptions_but_for_the_date(tmp_path: Path) -> None:
    documents = []
    for name, when in (("one", 1.7e9), ("other", 1.8e9)):
        layout = begin(str(tmp_path / name))
        fill(layout, range(2), when)
        croissant.write(layout)
        documents.append(dict(layout.read_json("croissant.json")))
    first, second = documents
    assert first.pop("datePublished") != second.pop("datePublished")
    assert first == second
    assert str(tmp_path) not in json.dumps(first)


def test_it_is_written_again_only_if_the_corpus_grew(place: str) -> None:
    layout = begin(place)
    fill(layout, range(3))
    assert croissant.write(layout) is True
    before = storage.read_bytes(layout.place("croissant.json"))
    assert croissant.write(layout) is False
    assert storage.read_bytes(layout.place("croissant.json")) == before
    fill(layout, range(3, 4))
    assert croissant.write(layout) is True
    assert layout.read_json("croissant.json")["version"].startswith("2.4.0+")
    storage.put(layout.place("croissant.json"), b"cut sh")
    assert croissant.write(layout) is True


def test_it_stays_true_while_the_corpus_is_being_extended(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    croissant.write(layout)
    layout.grow(9)
    write_shard(layout, 3, compute(FakeSampler(), 24, 8))
    assert croissant.write(layout) is False
    # The reader compares the hashes of what it reads with the described ones.
    rows = loaded(Path(layout.place("croissant.json")), monkeypatch).records("shards")
    assert [row["shards/shard"] for row in rows] == [0, 1, 2]
    for entry in layout.read_json("croissant.json")["distribution"]:
        if "sha256" in entry:
            data = storage.read_bytes(layout.place(entry["contentUrl"]))
            assert hashlib.sha256(data).hexdigest() == entry["sha256"]


def test_what_is_not_known_is_not_named(tmp_path: Path) -> None:
    layout = Layout.begin(str(tmp_path), CorpusConfig(samples_per_shard=8).identity(FakeSampler()))
    layout.grow(1)
    write_shard(layout, 0, compute(FakeSampler(), 0, 8))
    manifest.finalise(layout)
    croissant.write(layout)
    described = layout.read_json("croissant.json")
    assert described["prov:wasDerivedFrom"] == {"@type": "prov:Entity", "prov:label": "not stated"}
    assert described["citation"] == "not stated"
    assert "datePublished" not in described  # the record tells no time, and no clock is asked


def test_a_described_corpus_is_sound_and_read_as_before(layout: Layout) -> None:
    digest = layout.read_json("manifest.json")["digest"]
    croissant.write(layout)
    storage.put(layout.place("gallery.html"), b"a page")
    found = manifest.verify(layout)
    assert (found["faults"], found["uncommitted"], found["digest"]) == ([], [], digest)
    assert CorpusReader(layout.url).num_samples == 24


def test_a_corpus_without_a_manifest_or_without_samples_is_refused(tmp_path: Path) -> None:
    layout = begin(str(tmp_path))
    with pytest.raises(DataError, match="not finalised"):
        croissant.write(layout)
    manifest.finalise(layout)
    with pytest.raises(DataError, match="no shard is committed"):
        croissant.write(layout)


@pytest.mark.parametrize(
    ("licence", "said"),
    [
        ("Apache-2.0", "https://spdx.org/licenses/Apache-2.0"),
        ("https://example.org/terms", "https://example.org/terms"),
        ("on request", {"@type": "sc:CreativeWork", "name": "As of the training data: on request"}),
    ],
)
def test_licence_of_the_training_data_is_carried_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, licence: str, said: Any
) -> None:
    layout = begin(str(tmp_path), licence=licence)
    fill(layout, range(1))
    croissant.write(layout, creator="Some Institute", url="https://example.org/corpus")
    described = layout.read_json("croissant.json")
    assert described["license"] == said
    metadata = loaded(described, monkeypatch).metadata
    assert [creator.name for creator in metadata.creators] == ["Some Institute"]
    assert metadata.url == "https://example.org/corpus"
