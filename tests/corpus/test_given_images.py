"""A corpus of given images: exactly as many samples as there are images, and no word of synthetic data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import xarray
from fake_pairs import FakeSampler

from dakter import storage
from dakter.corpus import croissant, manifest
from dakter.corpus.commit import write_shard
from dakter.corpus.layout import CorpusConfig, Layout
from dakter.corpus.pack import make
from dakter.corpus.reader import CorpusReader
from dakter.corpus.regenerate import regenerate
from dakter.corpus.shard import compute
from dakter.corpus.status import status
from dakter.corpus.wording import UNLABELLED
from dakter.errors import ConfigError, IntegrityError
from dakter.report.corpus_page import build
from jobs._datasource import CorpusDatasource

NUM, SHARD = 21, 8
PROVENANCE = {"source": "Sea of Nowhere", "licence": "on request", "citation": "N. N. 2020", "tiles_digest": "abc"}


class Given(FakeSampler):
    """21 images in micro-batches of 4: the last has one, and so has the last shard of 8 but five."""

    num_samples = NUM

    def __init__(self) -> None:
        super().__init__()
        self.identity["content"] = UNLABELLED


@pytest.fixture
def layout(place: str) -> Layout:
    """A finished one, its last shard made the way that actors make it."""
    layout = Layout.begin(place, CorpusConfig(samples_per_shard=SHARD).identity(Given()), provenance=PROVENANCE)
    layout.grow(layout.num_shards(1024))
    for shard in (0, 1):
        write_shard(layout, shard, compute(Given(), shard * SHARD, SHARD))
    write_shard(layout, 2, make(layout, Given(), 2)())
    return layout


def test_it_holds_every_image_once_and_no_other(layout: Layout) -> None:
    found = manifest.finalise(layout)
    assert (layout.planned_shards(), found["num_samples"]) == (3, NUM)
    assert [row["count"] for row in found["ranges"]] == [8, 8, 5]
    reader = CorpusReader(layout.url)
    expected = [np.concatenate(parts) for parts in zip(*(Given()(batch) for batch in batches()), strict=True)]
    for stored, wanted in zip(reader.sample(range(NUM)), expected, strict=True):
        assert (stored == wanted).all()
    assert (reader.num_samples, reader.indices.tolist()) == (NUM, list(range(NUM)))
    epoch = reader.batches(NUM, seed=0)
    for _ in range(2):
        assert {image.tobytes() for image in next(epoch)[0]} == {image.tobytes() for image in expected[0]}
    assert CorpusDatasource(layout.url).get_read_tasks(1)[2].metadata.num_rows == 5
    with pytest.raises(IntegrityError, match="has no sample 21; expected 0 to 20"):
        reader.sample([21])
    with pytest.raises(IntegrityError, match="sample 21"):
        CorpusReader(layout.url, accept=[20, 21])
    shares = np.mean(expected[1] / 255, axis=(0, 2, 3))
    np.testing.assert_allclose(found["class_shares"], shares, rtol=1e-12)


def batches() -> list[np.ndarray]:
    return [np.arange(first, min(first + 4, NUM)) for first in range(0, NUM, 4)]


def test_zarr_reads_the_short_shard_as_it_is(tmp_path: Path) -> None:
    layout = Layout.begin(str(tmp_path), CorpusConfig(samples_per_shard=SHARD).identity(Given()))
    layout.grow(3)
    packed = compute(Given(), 16, 5)
    write_shard(layout, 2, packed)
    opened = xarray.open_zarr(f"{layout.url}/data.zarr", consolidated=False, mask_and_scale=False)
    assert opened["image"].shape == (NUM, 1, 8, 8)
    assert (opened["image"][16:].values == packed["image"]).all()
    assert (opened["soft_label"][16:].values == packed["soft_label"]).all()


def test_every_byte_is_verified_and_drawn_again(layout: Layout) -> None:
    manifest.finalise(layout)
    found = manifest.verify(layout, deep=True)
    assert (found["faults"], found["num_samples"]) == ([], NUM)
    here = status(layout)
    assert (here["num_samples"], here["num_samples_planned"], here["num_shards_missing"]) == (NUM, NUM, 0)
    compared = regenerate(layout, Given(), 20, {"device": "", "versions": {}})
    assert (compared["equal"], compared["micro_batch"]) == (True, [20, 20])
    with pytest.raises(ConfigError, match="sample is 21; expected 0 to 20"):
        regenerate(layout, Given(), 21, {"device": "", "versions": {}})
    key = layout.commit_key(2)
    storage.put_json(layout.place(key), {**layout.read_json(key), "count": 8})
    assert [fault["kind"] for fault in manifest.verify(layout)["faults"]] == ["foreign", "manifest"]


def test_nothing_calls_its_images_synthetic(layout: Layout) -> None:
    manifest.finalise(layout)
    croissant.write(layout)
    described = layout.read_json("croissant.json")
    assert described["description"].startswith("21 machine-labelled pairs of a SAR image (vv; 8 x 8 pixels)")
    assert described["license"]["name"] == "As of the images: on request"
    arrays = [layout.document(name)["attributes"] for name in ("image", "soft_label")]
    for text in (json.dumps(described), json.dumps(layout.attributes()), json.dumps(arrays), build(layout.url)):
        for word in ("ynthetic data", "ynthetic SAR", "ynthetic pair", "trainedAlgorithmicMedia", '"synthetic"'):
            assert word not in text, word
        assert "rained on" not in text, "what the model learned from is not what is in the corpus"
