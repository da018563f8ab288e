"""A corpus is begun once, refused with other settings, extended without touching what stands."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
import zarr
from fake_pairs import FakeSampler

from dakter import storage
from dakter.corpus.commit import write_shard
from dakter.corpus.layout import CorpusConfig, Layout
from dakter.corpus.shard import compute
from dakter.errors import ConfigError, ConflictError, DataError
from dakter.schema import OSD, soft_from_stored, to_model

CONFIG = CorpusConfig(num_samples=32, samples_per_shard=8)


def test_other_settings_are_refused_naming_each_difference(place: str) -> None:
    Layout.begin(place, CONFIG.identity(FakeSampler()))
    Layout.begin(place, CONFIG.identity(FakeSampler()))  # the same again continues
    other = CorpusConfig(samples_per_shard=16, seed=7).identity(FakeSampler())
    with pytest.raises(ConflictError) as raised:
        Layout.begin(place, other)
    assert "samples_per_shard: stands 8, asked for 16" in str(raised.value)
    assert "seed: stands 0, asked for 7" in str(raised.value)
    assert "micro_batch" not in str(raised.value)
    assert storage.read_json(storage.join(place, "identity.json"))["seed"] == 0


def test_number_of_samples_is_not_part_of_the_identity() -> None:
    more = CONFIG.model_copy(update={"num_samples": 1000, "max_attempts": 9})
    assert more.identity(FakeSampler()) == CONFIG.identity(FakeSampler())


def test_of_many_starters_with_two_minds_one_identity_survives(place: str) -> None:
    outcomes: list[str] = []

    def start(seed: int) -> None:
        try:
            Layout.begin(place, CorpusConfig(samples_per_shard=8, seed=seed).identity(FakeSampler()))
            outcomes.append(f"begun {seed}")
        except ConflictError:
            outcomes.append(f"refused {seed}")

    threads = [threading.Thread(target=start, args=(i % 2,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winner = storage.read_json(storage.join(place, "identity.json"))["seed"]
    assert sorted(outcomes) == sorted([f"begun {winner}"] * 4 + [f"refused {1 - winner}"] * 4)


def test_shards_hold_whole_micro_batches() -> None:
    with pytest.raises(ConfigError, match=r"samples_per_shard is 10; expected a multiple .*\(4\)"):
        CorpusConfig(samples_per_shard=10).identity(FakeSampler())
    content = FakeSampler.content
    assert CorpusConfig().shard_size(content, 24) == 1008  # 1024, down to whole micro-batches
    big = type(content)(content.class_table, content.bands, 256, 256, content.value_range)
    assert CorpusConfig().shard_size(big, 32) == 256


def test_growing_never_shrinks_and_touches_nothing_else(place: str) -> None:
    layout = Layout.begin(place, CONFIG.identity(FakeSampler()))
    layout.grow(4)
    write_shard(layout, 1, compute(FakeSampler(), 8, 8))
    before = storage.read_bytes(storage.join(place, layout.key("image", 1)))
    attributes = layout.document("soft_label")["attributes"]
    Layout.begin(place, CONFIG.identity(FakeSampler()))  # a second start lays nothing anew
    layout.grow(9)
    layout.grow(2)
    assert layout.planned_shards() == 9
    assert layout.document("soft_label")["shape"] == [72, 5, 8, 8]
    assert layout.document("soft_label")["attributes"] == attributes
    assert storage.read_bytes(storage.join(place, layout.key("image", 1))) == before


def test_growing_by_many_at_once_ends_at_the_largest(s3_bucket: str) -> None:
    layout = Layout.begin(f"{s3_bucket}/c", CONFIG.identity(FakeSampler()))
    threads = [threading.Thread(target=layout.grow, args=(n,)) for n in (3, 9, 5, 7, 2, 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert layout.planned_shards() == 9
    layout.check_documents()


@pytest.fixture
def partly_filled(place: str) -> tuple[Any, dict[str, np.ndarray]]:
    """The zarr store of a corpus whose second shard alone is written, and the stored arrays of that shard."""
    sampler = FakeSampler()
    sampler.content = dataclasses.replace(sampler.content, value_range=(-35.0, 5.0))
    provenance = {"licence": "CC-BY-4.0", "source": "Sea of Nowhere", "citation": "N. N. 2020", "tiles_digest": "abc"}
    layout = Layout.begin(place, CONFIG.identity(sampler), provenance=provenance)
    layout.grow(2)
    arrays = compute(sampler, 8, 8)
    write_shard(layout, 1, arrays)
    return storage.zarr_store(storage.join(place, "data.zarr")), arrays


def test_zarr_opens_it(partly_filled: tuple[Any, dict[str, np.ndarray]]) -> None:
    store, arrays = partly_filled
    group: Any = zarr.open_group(store, mode="r")
    for name, stored in arrays.items():
        assert np.array_equal(group[name][8:16], stored)


def test_xarray_shows_raw_values_and_probabilities(partly_filled: tuple[Any, dict[str, np.ndarray]]) -> None:
    store, arrays = partly_filled
    data = xarray.open_zarr(store, consolidated=False)
    assert data["image"].dims == ("sample", "band", "y", "x")
    assert data["soft_label"].dims == ("sample", "class", "y", "x")
    low, high = data["image"].attrs["value_range"]
    assert (low, high) == (-35.0, 5.0)
    # The model scale is what training sees; the raw value range stretches over it.
    raw = (to_model(arrays["image"]).numpy().astype(np.float64) + 1) / 2 * (high - low) + low
    assert data["image"][8:].values == pytest.approx(raw, abs=1e-5)
    assert data["soft_label"][8:].values == pytest.approx(soft_from_stored(arrays["soft_label"]).numpy(), abs=1e-7)
    assert data["soft_label"][8:].sum("class").values == pytest.approx(1.0, abs=1e-12)
    assert data["soft_label"].attrs["units"] == "1"
    assert float(data["image"][0].min()) == low  # an uncommitted shard is zeros, not a gap


def test_stored_values_are_decoded_by_the_attributes_alone(
    partly_filled: tuple[Any, dict[str, np.ndarray]],
) -> None:
    """What a reader without this library does: stored integers and what the attributes say of them."""
    store, arrays = partly_filled
    data = xarray.open_zarr(store, consolidated=False, mask_and_scale=False)
    for name, variable in data.items():
        assert variable.dtype == np.uint8
        assert np.array_equal(variable[8:], arrays[str(name)])
        low, high = variable.attrs["value_range"]
        factor, offset = variable.attrs["scale_factor"], variable.attrs["add_offset"]
        assert offset == low
        assert offset + 255 * factor == pytest.approx(high)
    assert data["soft_label"].attrs["class_names"] == list(OSD.names)
    assert data["image"].attrs["bands"] == ["vv"]


def test_attributes_tell_synthetic_data_and_where_they_come_from(
    partly_filled: tuple[Any, dict[str, np.ndarray]],
) -> None:
    attributes = xarray.open_zarr(partly_filled[0], consolidated=False).attrs
    assert attributes["synthetic"] is True
    assert attributes["digital_source_type"].endswith("digitalsourcetype/trainedAlgorithmicMedia")
    assert attributes["class_table"]["names"][1] == "oil spill"
    assert attributes["value_range"] == [-35.0, 5.0]
    assert attributes["license"] == "of the training data: CC-BY-4.0"
    assert attributes["references"] == "of the training data: N. N. 2020"
    assert "digest fake" in attributes["source"]
    assert attributes["source"].endswith("trained on: Sea of Nowhere")
    assert attributes["provenance"]["tiles_digest"] == "abc"
    assert attributes["provenance"]["model_digest"] == "fake"


def test_nothing_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no corpus stands here"):
        Layout.open(str(tmp_path))
