"""A cluster that grows for a generation and shrinks after it: Ray's autoscaler v2, real raylets, pretended GPUs."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dakter.corpus import manifest
from dakter.corpus.layout import Layout
from jobs import generate
from jobs._cli import Stop, resolve
from jobs.suites._chaos_sampler import ChaosSampler
from jobs.suites._raylets import Cluster, cluster

GPUS, SHARDS, SHARD = 2, 16, 8
NODE = {"resources": {"CPU": 2, "GPU": 1, "object_store_memory": 80_000_000}, "node_config": {}}

# A driver of its own, so that this process joins no cluster: notes the living GPU nodes whenever they change. In a file
# of its own, because Ray prints lines of its own into any driver's output.
_WATCH = """
import sys, time, ray
ray.init(log_to_driver=False, logging_level="ERROR")
last = None
with open(sys.argv[1], "w", buffering=1) as seen:
    while True:
        found = sorted(n["NodeID"] for n in ray.nodes() if n["Alive"] and n["Resources"].get("GPU"))
        if found != last:
            seen.write(f"{len(found)}\\n")
        last = found
        time.sleep(0.2)
"""
_GENERATE = "import sys; from test_autoscaling import make; make(sys.argv[1])"


@pytest.fixture
def from_nothing() -> Iterator[Cluster]:
    """A head that computes nothing, and an autoscaler that may start ``GPUS`` nodes of one pretended GPU."""
    with cluster(dict(os.environ), 0, node_types={"gpu": {**NODE, "min_workers": 0, "max_workers": GPUS}}) as made:
        yield made


def make(out: str) -> None:
    """In the driver's process: a generation by one actor a GPU."""
    overrides = {
        "out": out,
        "corpus.num_samples": SHARDS * SHARD,
        "corpus.samples_per_shard": SHARD,
        "ray.generate_workers": GPUS,
        "ray.generate_cpus": 1,
        "ray.generate_gpus": 1.0,
    }
    settings = resolve(generate.GenerateSettings, overrides=overrides)
    generate.run_with(settings, Stop(), functools.partial(ChaosSampler, delay_s=1.5, trace=f"{out}/traces"))


def test_a_cluster_grows_from_no_gpu_to_all_for_a_generation_and_back(from_nothing: Cluster, tmp_path: Path) -> None:
    (traces := tmp_path / "traces").mkdir()
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    env = {**from_nothing.env, "PYTHONPATH": path}
    (seen_at := tmp_path / "seen").touch()
    watch = subprocess.Popen(
        [sys.executable, "-c", _WATCH, str(seen_at)], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )

    def counts() -> list[int]:
        return [int(line) for line in seen_at.read_text().split()]

    try:
        until(lambda: counts() == [0])
        job = subprocess.run(
            [sys.executable, "-c", _GENERATE, str(tmp_path)], env=env, capture_output=True, text=True, timeout=300
        )
        assert job.returncode == 0, job.stdout[-2000:] + job.stderr[-4000:]
        until(lambda: counts()[-1] == 0)
    finally:
        watch.kill()
        watch.wait()
    assert max(counts()) == GPUS, json.dumps(counts())
    layout = Layout.open(str(tmp_path / "corpus"))
    assert layout.committed() == list(range(SHARDS))
    assert manifest.verify(layout)["faults"] == []
    assert len({name.rpartition("~")[2] for name in os.listdir(traces)}) == GPUS, "an actor on every node drew samples"


def until(ready: Callable[[], bool], timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not ready():
        assert time.monotonic() < deadline, "the cluster did not come to that state"
        time.sleep(0.2)
