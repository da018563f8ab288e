"""jobs/generate.py on a real Ray: exactly once, whatever happens to workers, drivers and rows."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_pairs import FakeSampler, processes
from generation import SAMPLES, SHARD, in_process, own_ray, run, run_in_process, settings, traced, undisturbed, verify
from tiny_model import put_untrained_model

from dakter import storage
from dakter.corpus import ledger, quote
from dakter.corpus.layout import Layout
from dakter.corpus.reader import CorpusReader
from dakter.corpus.regenerate import compare
from dakter.errors import ConflictError, DakterError, Stopped, StorageError
from dakter.schema import OSD
from jobs import _corpus_verbs as verbs
from jobs import _generation, generate
from jobs._cli import Stop
from jobs._shards import Row

__all__ = ["own_ray", "undisturbed"]  # fixtures


def when(ready: Callable[[], bool], then: Callable[[], None]) -> threading.Thread:
    """Do ``then`` from the background as soon as ``ready``."""

    def watch() -> None:
        deadline = time.monotonic() + 300
        while not ready() and time.monotonic() < deadline:
            time.sleep(0.02)
        if ready():
            then()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def test_three_workers_on_s3_make_the_same_corpus_once(
    own_ray: Any, undisturbed: str, s3_bucket: str, tmp_path: Path
) -> None:
    ours = settings(f"{s3_bucket}/run", ray__generate_workers=3)
    figures = run(ours, trace=str(tmp_path), company=2)  # a slow start must not let one actor do it all
    assert figures["corpus_digest"] == undisturbed
    assert (figures["num_samples"], figures["num_samples_made"], figures["num_shards"]) == (48, 48, 6)
    assert figures["mean_entropy_nats_per_pixel"] > 0.1
    assert sum(figures["class_shares"].values()) == pytest.approx(1)
    assert traced(tmp_path) == list(range(0, SAMPLES, 4)), "every micro-batch exactly once"
    assert len(processes(tmp_path)) > 1, "by several processes"
    again = run(ours, poison=0)  # nothing is drawn any more
    assert again["already_done"] is True
    assert again["corpus_digest"] == undisturbed
    assert verbs.show_status(ours, Stop())["num_shards_missing"] == 0
    assert verify(ours)["digest"] == undisturbed


def test_more_samples_extend_and_other_settings_are_refused(own_ray: Any, undisturbed: str, tmp_path: Path) -> None:
    (trace := tmp_path / "trace").mkdir()
    half = run_in_process(settings(tmp_path, corpus__num_samples=20))
    assert half["num_samples"] == 24, "whole shards"
    assert half["corpus_digest"] != undisturbed
    whole = run_in_process(settings(tmp_path), trace=str(trace))
    assert whole["corpus_digest"] == undisturbed
    assert traced(trace) == list(range(24, SAMPLES, 4))
    assert run(settings(tmp_path, corpus__num_samples=20))["already_done"] is True
    with pytest.raises(ConflictError, match=r"seed: stands 0, asked for 1"):
        run(settings(tmp_path, corpus__seed=1))
    assert CorpusReader(str(tmp_path / "corpus")).digest == undisturbed


def test_a_killed_actor_loses_nothing(own_ray: Any, undisturbed: str, tmp_path: Path) -> None:
    mark = str(tmp_path / "killed-")
    figures = run(settings(tmp_path, ray__generate_workers=2), kill_at=20, kill_mark=mark)
    assert Path(f"{mark}0").exists(), "a process was killed"
    assert figures["corpus_digest"] == undisturbed
    assert Layout.open(str(tmp_path / "corpus")).failed() == []


def test_poisoned_shards_are_set_aside_and_the_rest_goes_on(own_ray: Any, undisturbed: str, tmp_path: Path) -> None:
    ours = settings(tmp_path, corpus__max_attempts=2)
    (trace := tmp_path / "trace").mkdir()
    with pytest.raises(DakterError) as raised:
        run(ours, poison=12, kill_at=32, kill_mark=str(tmp_path / "killed-"), kill_times=99, trace=str(trace))
    assert raised.value.exit_status == 1
    assert "shard 1 (2 attempts): RuntimeError: sample 12 is poisoned" in str(raised.value)
    assert "shard 4 (2 attempts): the worker's process died" in str(raised.value)
    assert traced(trace).count(12) == traced(trace).count(32) == 2
    layout = Layout.open(str(tmp_path / "corpus"))
    assert layout.committed() == [0, 2, 3, 5]
    record = storage.read_json(layout.place(layout.failed_key(1)))
    assert "Traceback" in record["traceback"]
    assert "fake_pairs.py" in record["traceback"]
    assert [row["shard"] for row in verbs.show_status(ours, Stop())["failed"]] == [1, 4]
    assert run_in_process(ours)["corpus_digest"] == undisturbed  # the cause is mended
    assert verbs.show_status(ours, Stop())["failed"] == []


def test_sigterm_keeps_what_is_committed_and_the_same_command_resumes(
    own_ray: Any, undisturbed: str, tmp_path: Path
) -> None:
    (trace := tmp_path / "trace").mkdir()
    commits = tmp_path / "corpus" / "commits"
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        when(lambda: any(commits.glob("0*.json")), lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Stopped, match="are committed; the same command resumes"):
            run(settings(tmp_path, ray__generate_workers=2), delay_s=0.4)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    done = Layout.open(str(tmp_path / "corpus")).committed()
    assert 0 < len(done) < 6
    assert run_in_process(settings(tmp_path), trace=str(trace))["corpus_digest"] == undisturbed
    redone = [first for shard in range(6) if shard not in done for first in (shard * 8, shard * 8 + 4)]
    assert traced(trace) == redone


def test_two_drivers_at_once_do_no_harm(own_ray: Any, undisturbed: str, tmp_path: Path) -> None:
    outcomes: list[Any] = []
    drivers = [
        threading.Thread(target=lambda: outcomes.append(run(settings(tmp_path), delay_s=0.05)), daemon=True)
        for _ in range(2)
    ]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join(120)
    assert [outcome["corpus_digest"] for outcome in outcomes] == [undisturbed] * 2
    assert verify(settings(tmp_path))["faults"] == []


def test_rows_that_are_lost_without_a_word_are_made_again(
    own_ray: Any, undisturbed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds: list[tuple[int, ...]] = []

    def losing(ray: Any, factory: Any, work: Any, config: Any, **other: Any) -> Iterator[Row]:
        """Says that all is written but makes all but the last two: what max_errored_blocks would do."""
        rounds.append(work.shards)
        made = work.shards if len(work.shards) == 2 else work.shards[:-2]
        list(in_process(ray, factory, dataclasses.replace(work, shards=made), config))
        return iter(Row(shard, "written", 1) for shard in work.shards)

    monkeypatch.setattr(_generation, "fan_out", losing)
    assert run(settings(tmp_path / "a"))["corpus_digest"] == undisturbed
    assert rounds == [(0, 1, 2, 3, 4, 5), (4, 5)]
    monkeypatch.setattr(_generation, "fan_out", lambda *args, **other: iter([Row(0, "written", 1)]))
    with pytest.raises(DakterError, match="no shard came out of a whole round"):
        run(settings(tmp_path / "b"))
    assert not storage.exists(str(tmp_path / "b" / "corpus" / "manifest.json"))


def test_a_full_disk_is_waited_out_and_costs_no_attempt(own_ray: Any, undisturbed: str, tmp_path: Path) -> None:
    mark = str(tmp_path / "full-")
    ours = settings(tmp_path, corpus__max_attempts=1, ray__generate_workers=1)
    figures = run(ours, full_at=12, full_mark=mark, full_times=2)
    assert Path(f"{mark}1").exists(), "it was full twice"
    assert figures["corpus_digest"] == undisturbed


def test_a_worker_whose_disk_stays_full_gives_its_place_up(own_ray: Any, undisturbed: str, tmp_path: Path) -> None:
    ours = settings(tmp_path, corpus__patience_s=0.0, ray__generate_workers=2)
    figures = run(ours, full_at=12, full_mark=str(tmp_path / "full-"), full_times=2)
    assert figures["corpus_digest"] == undisturbed, "the shard went to fresh processes, which had space"


def test_a_cap_stops_cleanly_and_a_higher_one_goes_on(own_ray: Any, undisturbed: str, tmp_path: Path) -> None:
    one = run_in_process(settings(tmp_path / "one", corpus__num_samples=SHARD))["bytes"]
    capped = settings(tmp_path / "all", budget__max_bytes=int(one * 3.5), ray__generate_workers=2)
    with pytest.raises(Stopped, match=r"budget\.max_bytes is \d+: \d+ bytes are stored") as raised:
        run(capped)
    assert raised.value.exit_status == 4
    layout = Layout.open(str(tmp_path / "all" / "corpus"))
    assert layout.committed(), "what was made is kept"
    assert quote.stored(layout) <= one * 3.5
    assert [record["outcome"] for record in ledger.runs(layout)] == ["stopped"]
    with pytest.raises(Stopped, match="max_hours is 1e-09"):
        run(settings(tmp_path / "all", budget__max_hours=1e-9))
    assert run_in_process(settings(tmp_path / "all"))["corpus_digest"] == undisturbed


def test_nodes_that_go_and_do_not_come_back_are_told_with_what_was_asked_for(
    own_ray: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits = tmp_path / "corpus" / "commits"
    when(lambda: any(commits.glob("0*.json")), lambda: monkeypatch.setattr(own_ray, "nodes", lambda: []))
    asked, has = r"asked for 1 x \{'CPU': 1\.0\}, not there within 2 s", r"the cluster has .* on 0 node\(s\)"
    with pytest.raises(StorageError, match=f"{asked}; {has}"):
        run(settings(tmp_path, ray__start_timeout_s=2), delay_s=0.8)
    assert Layout.open(str(tmp_path / "corpus")).committed(), "what was made is kept"


def test_actors_that_fall_silent_are_told_with_what_was_asked_for(own_ray: Any, tmp_path: Path) -> None:
    ours = settings(tmp_path, corpus__stall_s=5, corpus__num_samples=SHARD)
    asked, has = r"asked for 1 x \{'CPU': 1\.0\}", r"the cluster has .*'CPU': \d.* on 1 node"
    with pytest.raises(StorageError, match=rf"no sign of life for \d+ s; {asked}, {has}"):
        run(ours, delay_s=9)


def test_an_actor_that_cannot_start_fails_the_job(own_ray: Any, tmp_path: Path) -> None:
    calls = tmp_path / "started"
    with pytest.raises(DakterError, match="sampling actors failed before any shard was committed"):
        generate.run_with(settings(tmp_path), Stop(), functools.partial(first_only, str(calls)))


def first_only(mark: str) -> FakeSampler:
    """A sampler in the driver, an error in every actor."""
    if os.path.exists(mark):
        raise RuntimeError("no model here")
    Path(mark).touch()
    return FakeSampler()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A saved joint model, tiny and untrained."""
    url = str(tmp_path_factory.mktemp("model") / "model")
    record = {"licence": "CC-BY-4.0", "tiles_digest": "t"}
    put_untrained_model(url, record, size_px=16, bands=("vv",), value_range=(-30.0, 0.0))
    return url


def test_a_real_model_gives_the_same_pairs_in_shards_of_any_size(own_ray: Any, model: str, tmp_path: Path) -> None:
    small = {"paths.model": model, "sampler.steps": 2, "sampler.micro_batch": 4, "soft_label.evaluations": 2}
    ours = {"corpus__num_samples": 16, **{key.replace(".", "__"): value for key, value in small.items()}}
    run_real = generate.run(settings(tmp_path / "a", ray__generate_workers=2, **ours), Stop())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_generation, "fan_out", in_process)
        generate.run(settings(tmp_path / "b", **{**ours, "corpus__samples_per_shard": 16}), Stop())
    one, other = (CorpusReader(str(tmp_path / name / "corpus")) for name in "ab")
    for mine, theirs in zip(one.sample(range(16)), other.sample(range(16)), strict=True):
        assert (mine == theirs).all()
    images, soft = one.sample(range(16))
    assert images.shape == (16, 1, 16, 16)
    assert len({image.tobytes() for image in images}) == 16
    assert (soft.sum(axis=1, dtype=int) == 255).all()
    assert one.identity["sampler"]["sampler"]["micro_batch"] == 4
    assert one.content.class_table == OSD
    assert one.content.value_range == (-30.0, 0.0)
    group = storage.read_json(str(tmp_path / "a" / "corpus" / "data.zarr" / "zarr.json"))
    assert group["attributes"]["provenance"]["licence"] == "CC-BY-4.0"
    assert str(tmp_path) not in json.dumps(group), "places of this machine stay out of what is passed on"
    assert run_real["num_samples"] == 16
    with pytest.MonkeyPatch.context() as patch:  # other micro-batches: another identity, and pairs within tolerance
        patch.setattr(_generation, "fan_out", in_process)
        generate.run(settings(tmp_path / "c", **{**ours, "sampler__micro_batch": 8}), Stop())
    apart = compare(one.sample(range(16)), CorpusReader(str(tmp_path / "c" / "corpus")).sample(range(16)))
    assert apart["within_tolerance"]
    for name in "ab":
        again = verbs.regenerate(
            settings(tmp_path / name, paths__model=model), Stop(), verbs.RegenerateOptions(sample=9)
        )
        assert again["equal"], "with the settings that the corpus records, whatever this command says"
        assert again["micro_batch"] == [8, 11]
    with pytest.raises(ConflictError, match=r"sampler\.sampler\.steps: stands 2, asked for 3"):
        generate.run(settings(tmp_path / "a", **{**ours, "sampler__steps": 3}), Stop())
