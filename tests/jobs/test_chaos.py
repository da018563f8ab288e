"""The short form of the chaos suite: real raylets, real kills, a real S3 server behind a proxy that fails."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from jobs._cli import Stop
from jobs.suites import chaos
from jobs.suites._chaos_run import EVENTS, Account
from jobs.suites._fault_proxy import KINDS


def test_a_disturbed_generation_is_the_undisturbed_one() -> None:
    figures = chaos.disturb(chaos.SCALES["short"], Stop(), seed=4)  # raises, naming the bars, if any is broken
    assert figures["digest"] == figures["digest_undisturbed"]
    assert all(figures["events"][kind] >= 1 for kind in ("actor_kill", "node_loss", "driver_kill", "second_driver"))
    assert set(figures["store_faults"]) == set(KINDS)
    assert figures["driver_exits"][-1] == "0"
    assert figures["shards_computed"] >= figures["shards"]


def test_the_full_form_meets_what_it_is_to_show() -> None:
    scale = chaos.SCALES["full"]
    least = {"actor_kill": 20, "node_loss": 6, "driver_kill": 5, "second_driver": 1, "full_disk": 1, "drain": 1}
    assert all(scale.events[kind] >= count for kind, count in least.items())
    assert set(scale.events) == set(EVENTS)
    assert scale.store_faults * len(KINDS) >= 200
    undisturbed_s = scale.shards * scale.micro_batches * scale.delay_s / scale.workers
    assert undisturbed_s >= 30 * 60, "half an hour even if nothing went wrong"


def test_a_broken_promise_is_named(tmp_path: Path) -> None:
    scale = replace(chaos.SCALES["short"], shards=3)
    plain = chaos._undisturbed(scale)
    other = [{**plain[1], "decoded_sha256": {}}, plain[2]]
    losses = chaos._losses(plain, other, {"faults": []})
    assert (losses["samples_lost"], losses["samples_altered"]) == (8, 8)
    figures = {
        **losses,
        "digests_equal": False,
        "shards_redone_per_fault": 1.5,
        "shards_redone_per_actor_lost": 0.5,
        "shards_begun_after_drain_notice": 0,
        "full_disk_refusals": 1,
        "store_faults": dict.fromkeys(KINDS, 2),
    }
    account = Account(exits=["1", "0"], poison_traceback="RuntimeError: sample 8 is poisoned")
    account.delivered.update(scale.events)
    broken = chaos._broken(scale, figures, account, {"faults": []})
    assert [text for text in broken if "digest" in text]
    assert [text for text in broken if "lost" in text]
    assert [text for text in broken if "altered" in text]
    assert [text for text in broken if "a fault" in text]
    assert len(broken) == 4
