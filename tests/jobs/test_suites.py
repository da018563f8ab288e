"""The suites of jobs/benchmark.py that need no cluster of several machines, at their smallest: that they measure."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from dakter import storage
from dakter.corpus import manifest
from dakter.corpus.layout import CorpusConfig, Layout
from dakter.corpus.shard import compute
from jobs._cli import Stop
from jobs._ray import RayConfig, session
from jobs.suites import _knee, _reading, corpus, encoding, million, scaling
from jobs.suites._delivery import deliver, demo_model
from jobs.suites._driver_growth import growth
from jobs.suites._paced_sampler import PacedSampler, entropy_nats
from jobs.suites._tiny_sampler import TinySampler
from jobs.suites._watch import Cores

SIZES = corpus.Sizes(2, 32, 16, 1.0, 16, 8, 3, (0.5, 1e3), 8, 4, 1)


def test_samplers_of_the_suites_repeat_themselves_and_no_sample() -> None:
    for sampler in (PacedSampler(16, micro_batch=4, bases=4), TinySampler(4)):
        first, again = compute(sampler, 0, 16), compute(sampler, 8, 8)
        assert np.array_equal(first["image"][8:], again["image"])
        assert len({image.tobytes() for image in first["image"]}) == 16


def test_reading_is_compared_on_the_same_samples(place: str) -> None:
    corpus.filled(place, SIZES)
    found = _reading.compare(place, repeats=1, loop_samples=4, stop=Stop())
    assert found["samples"] == 64
    assert set(found["reader_over"]) == {"bare", "tensorstore", "zarr_loop"}
    assert all(rate > 0 for rate in found["samples_per_second"].values())
    # Each way hands out the whole corpus, as often as the others.
    expected = np.sort(compute(PacedSampler(16, micro_batch=8), 0, 64)["image"].reshape(64, -1).sum(axis=1, dtype=int))
    for batches in (_reading._reader(place), _reading._bare(place), _reading._tensorstore(place, 64)):
        sums = np.concatenate([images.reshape(len(images), -1).sum(axis=1, dtype=int) for images, _ in batches])
        assert np.array_equal(np.sort(sums), np.repeat(expected, _reading._EPOCHS))


def test_the_knee_lies_between_a_slow_sampler_and_one_that_no_writer_follows(place: str) -> None:
    with session(RayConfig(num_cpus=2)):
        found = _knee.knee(place, size_px=16, samples_per_shard=8, shards=5, repeats=1, steps=(0.02, 1e3), stop=Stop())
    slow, fast = (row["delivered_share"] for row in found["curve"])
    assert slow > fast
    assert found["knee_over_bare_zarr"] in (0.0, 0.02)
    made = Layout.open(storage.join(place, "bare"))  # in one process, with no sampler to wait for
    assert manifest.verify(made)["faults"] == []
    assert len(made.committed()) == 5


def test_bare_zarr_writes_what_dakter_commits(tmp_path: Path) -> None:
    sampler = PacedSampler(16, micro_batch=8)
    ours, theirs = (
        Layout.begin(str(tmp_path / name), CorpusConfig(samples_per_shard=8).identity(sampler)) for name in "ab"
    )
    arrays = [compute(sampler, shard * 8, 8) for shard in range(2)]
    for layout in (ours, theirs):
        layout.grow(2)
    _knee._make(ours, sampler)
    _knee._bare_zarr(theirs, arrays)
    for name in ("image", "soft_label"):
        assert storage.read_bytes(ours.place(ours.key(name, 1))) == storage.read_bytes(theirs.place(ours.key(name, 1)))


def test_delivery_of_the_demo_network(tmp_path: Path) -> None:
    demo_model(str(tmp_path / "model"))
    with session(RayConfig(num_cpus=2)):
        found = deliver(
            [("local", str(tmp_path))],
            str(tmp_path / "model"),
            actors=2,
            num_samples=32,
            samples_per_shard=16,
            repeats=1,
            bare_s=1.0,
            stop=Stop(),
        )
    share = found["share_of_n_times_bare_one_of_several"]["local"]
    assert 0 < share < 2
    bare = found["bare_per_second_one_of_several"]["local"]
    assert bare > 0
    assert found["committed_per_second"]["local"] == pytest.approx(2 * bare * share, rel=0.01)
    assert found["float32_object_a_sample_per_second"]["local"] > 0
    assert not (tmp_path / "contrast-0").exists()


def test_million_at_a_thousandth(tmp_path: Path) -> None:
    found = million.measure(tmp_path / "million", 1000, Stop(), repeats=1)
    assert (found["num_samples"], found["num_shards"], found["resume_shards_missing"]) == (1024, 4, 1)
    assert found["resume_seconds_to_first_new_shard"] > 0
    assert found["driver_peak_rss_mb_at_share"]["100%"] > 50
    assert not (tmp_path / "million").exists()


def test_many_committers_at_once_leave_every_shard_whole(place: str) -> None:
    found = scaling.commit_at_once(place, scaling.Sizes((1,), 16, 16, 1, 64, 1))
    assert (found["committers"], found["shards"]) == (64, 64)
    assert found["all_over_one"] > 0


def test_weak_scaling_tells_what_was_offered_and_what_came(tmp_path: Path) -> None:
    with session(RayConfig(num_cpus=2)):
        found = scaling.weak_scaling(tmp_path, scaling.Sizes((1, 2), 16, 16, 2, 1, 1), Stop())
    pace = scaling.H100_PER_SECOND
    assert [row["offered_per_second"] for row in found["curve"]] == pytest.approx([pace, 2 * pace], abs=0.1)
    assert found["writers_limit_per_second"] > 0
    rows = [*found["curve"], *found["shares_of_the_writers_limit"]]
    assert all(0 < row["efficiency"] < 1.05 and 0 < row["cores_busy"] <= 1 for row in rows)
    shares = [row["offered_over_writers_limit"] for row in found["shares_of_the_writers_limit"]]
    assert shares == pytest.approx(scaling.SHARES, abs=0.01)


def test_the_steady_rate_counts_whole_rounds_and_neither_start_nor_end() -> None:
    """Two actors in step, 8 shards of 10 samples each, a round a second; the first is 5 s late, the last 3 s."""
    with Cores() as cores:
        time.sleep(0.3)
    now = time.time()
    commits = [now + 5 + turn + late for turn in range(8) for late in (0.0, 0.01)]
    commits[-1] += 3
    rate, besides_s, _ = scaling._steady(now, commits, 2, 10, cores)
    assert rate == pytest.approx(20)
    assert besides_s == pytest.approx(5 + 7 + 0.01 + 3 - 16 * 10 / 20)


def test_the_driver_is_looked_at_by_number_of_shards(tmp_path: Path) -> None:
    small, large = growth(tmp_path, (4, 8), Stop())
    assert (small["shards"], large["shards"]) == (4, 8)
    assert large["driver_peak_rss_mb"] >= large["driver_rss_mb_before"] > 50
    assert min(small["driver_cpu_ms_per_shard"], small["shards_per_second"]) > 0


def test_encodings_are_told_apart_at_the_entropies_stated() -> None:
    found = encoding.measure(encoding.Sizes(1, 8, 4, 2, 1), Stop())
    for nats in encoding.ENTROPIES_NATS:
        rows = found[f"{nats} nats"]["storage"]
        assert found[f"{nats} nats"]["entropy_nats"] == pytest.approx(nats, rel=0.02)
        assert rows["uint8 of p"]["total_variation_max"] <= 4 / 510 + 1e-6
        assert rows["uint16 of p"]["total_variation_mean"] < rows["uint8 of p"]["total_variation_mean"]
        assert rows["uint8 of p"]["bytes_per_sample"] < rows["uint8 of sqrt(p)"]["bytes_per_sample"]
        assert rows["uint8 of p"]["bytes_per_sample"] < rows["float16 of p"]["bytes_per_sample"]
        assert found[f"{nats} nats"]["student"]["uint8 of p"]["val_nll_largest_difference"] >= 0
    sharp = found["0.05 nats"]["storage"]["uint8 of p"]["bytes_per_sample"]
    assert sharp < found["0.25 nats"]["storage"]["uint8 of p"]["bytes_per_sample"]


def test_an_encoding_gives_back_what_it_was_given() -> None:
    p = encoding.tempered(encoding._simulated(1, 64)[1], 0.3)
    assert entropy_nats(p) == pytest.approx(0.3, rel=0.01)
    for name, found in encoding.ENCODINGS.items():
        back = found.load(found.store(p))
        assert np.allclose(back.sum(axis=1), 1, atol=1e-6), name
        assert np.abs(back - p).max() < 0.01, name
