"""The verbs of jobs/generate.py: verify and repair, quote, finalise."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
from fake_pairs import FakeSampler
from generation import SAMPLES, SHARD, in_process, own_ray, run, run_in_process, settings, traced, undisturbed, verify

from dakter import storage
from dakter.corpus import manifest
from dakter.corpus.commit import write_shard
from dakter.corpus.layout import CorpusConfig, Layout
from dakter.corpus.reader import CorpusReader
from dakter.corpus.shard import compute
from dakter.errors import IntegrityError
from jobs import _corpus_verbs as verbs
from jobs import _generation
from jobs._cli import Stop

__all__ = ["own_ray", "undisturbed"]  # fixtures


def test_verify_names_the_fault_and_exits_1(own_ray: Any, undisturbed: str, tmp_path: Path) -> None:
    run_in_process(settings(tmp_path, corpus__num_samples=8))
    layout = Layout.open(str(tmp_path / "corpus"))
    data = bytearray(storage.read_bytes(layout.place(layout.key("image", 0))))
    data[7] ^= 1
    storage.put(layout.place(layout.key("image", 0)), bytes(data))
    with pytest.raises(IntegrityError, match=r"altered: shard 0 data\.zarr/image/c\.0\.0\.0\.0") as raised:
        verify(settings(tmp_path))
    assert raised.value.exit_status == 1
    assert storage.read_json(str(tmp_path / "stages" / "verify.json"))["faults"][0]["kind"] == "altered"


def test_repair_makes_just_the_broken_shards_again(own_ray: Any, undisturbed: str, tmp_path: Path) -> None:
    run_in_process(settings(tmp_path))
    layout = Layout.open(str(tmp_path / "corpus"))
    storage.put(layout.place(layout.key("image", 1)), b"cut")
    storage.delete(layout.place(layout.key("soft_label", 4)))
    (trace := tmp_path / "trace").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_generation, "fan_out", in_process)
        factory = functools.partial(FakeSampler, trace=str(trace))
        found = verbs.verify_with(settings(tmp_path), Stop(), verbs.VerifyOptions(repair=True), factory)
    assert found["repaired"] == [1, 4]
    assert traced(trace) == [8, 12, 32, 36]
    assert verify(settings(tmp_path), deep=True)["digest"] == undisturbed
    assert manifest.read_manifest(layout) is not None


def test_only_a_deep_look_finds_what_was_stored_wrong_from_the_start(own_ray: Any, tmp_path: Path) -> None:
    run_in_process(settings(tmp_path, corpus__num_samples=8))
    layout = Layout.open(str(tmp_path / "corpus"))
    record = storage.read_json(layout.place(layout.commit_key(0)))
    record["objects"]["image"]["decoded_sha256"] = "0" * 64
    storage.put_json(layout.place(layout.commit_key(0)), record)
    storage.delete(layout.place("manifest.json"))
    assert verify(settings(tmp_path))["faults"] == []
    with pytest.raises(IntegrityError, match="the decoded samples are not those of the record"):
        verify(settings(tmp_path), deep=True)


def test_a_quote_is_told_from_shards_that_stay(own_ray: Any, undisturbed: str, tmp_path: Path) -> None:
    ours = settings(tmp_path, ray__generate_workers=2, budget__price_per_hour=4.0)
    told = verbs.quote_with(ours, Stop(), verbs.QuoteOptions(canary=3), FakeSampler)
    layout = Layout.open(str(tmp_path / "corpus"))
    assert len(layout.committed()) == told["measured_shards"] == 3
    assert (told["num_shards"], told["num_samples"]) == (6, SAMPLES)
    assert 0 < told["money"]["workers"]["low"] <= told["money"]["workers"]["high"]
    assert verbs.quote_with(ours, Stop(), verbs.QuoteOptions(canary=2), FakeSampler)["measured_shards"] == 3
    figures = run(ours)
    assert figures["corpus_digest"] == undisturbed
    assert figures["num_samples_made"] == 24
    compared = figures["quote_against_actual"]
    assert compared["worker_hours"]["actual"] > 0
    assert compared["gigabytes"]["actual"] == figures["bytes"] / 1e9
    assert compared["gigabytes"]["low"] <= figures["bytes"] / 1e9 * 1.2, "shards are alike"
    after = verbs.quote_with(ours, Stop(), verbs.QuoteOptions(), FakeSampler)
    assert after["quote_against_actual"] == compared


def test_a_partial_corpus_can_be_finalised(own_ray: Any, tmp_path: Path) -> None:
    layout = Layout.begin(str(tmp_path / "corpus"), CorpusConfig(samples_per_shard=SHARD).identity(FakeSampler()))
    layout.grow(6)
    for shard in (0, 3):
        write_shard(layout, shard, compute(FakeSampler(), shard * SHARD, SHARD))
    found = verbs.finalise(settings(tmp_path), Stop())
    assert (found["num_shards"], found["num_samples"]) == (2, 16)
    assert CorpusReader(layout.url).digest == found["digest"]
    assert storage.read_json(layout.place("croissant.json"))["name"]
    assert storage.exists(verbs.gallery(settings(tmp_path), Stop())["gallery"])
