"""Training over several raylets, each with a disk and HOME of its own: the weights of one process, whatever is lost."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from listeners import watching

from dakter.data.tiles import TileCorpus
from dakter.diffusion.fit import fit
from dakter.diffusion.pipeline import open_model
from jobs import _cli, train
from jobs.suites._raylets import Cluster, Node, cluster

pytestmark = pytest.mark.timeout(400)
STEPS, EVERY = 30, 10
NOTICED = 200  # steps where a node is told to leave: the notice must come while there is still much to do
# Large enough that a step of one worker takes a noticeable time, small enough for two cores.
FLAGS = {
    "network.widths": [48, 64],
    "network.blocks": [2, 2],
    "train.steps": STEPS,
    "train.checkpoint_every": EVERY,
    "train.precision": "fp32",
    "train.batch_size": 10,
}
# fp32 sums in another order, 30 steps of AdamW: the largest difference of a weight. Weights move by up to 1e-2.
TOLERANCE = 2e-4


def expected(tiles: str, steps: int) -> dict[str, torch.Tensor]:
    """Weights after the same batches in one process, without Ray."""
    overrides = {"out": "unused", **FLAGS, "train.steps": steps}
    settings = _cli.resolve(train.TrainSettings, preset="tiny", overrides=overrides)
    result = fit(
        settings.network,
        settings.diffusion,
        settings.train,
        train.training_data(TileCorpus.open(tiles), settings.diffusion),
        resume=None,
        on_checkpoint=lambda folder, metrics: None,
        on_log=lambda step, record: None,
        should_stop=lambda: False,
    )
    return dict(result.pipeline.unet.state_dict())


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    """Four nodes of one CPU: every worker has a node to itself."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}
    with cluster(env, 4, num_cpus=1) as made:
        yield made


def start(made: Cluster, tiles: str, out: Path, steps: int, **ray: Any) -> subprocess.Popen:
    """``python jobs/train.py``, joined to the cluster."""
    flags = {"out": out, "paths.tiles": tiles, "tracking.uri": f"sqlite:///{out}/mlflow.db", "ray.train_cpus": 1}
    flags |= FLAGS | {"train.steps": steps} | {f"ray.{key}": value for key, value in ray.items()}
    out.mkdir()
    command = [sys.executable, "jobs/train.py", "--preset", "tiny"]
    command += [word for key, value in flags.items() for word in (f"--{key}", str(value))]
    with open(out / "log", "wb") as log:
        return subprocess.Popen(command, cwd=Path(__file__).parents[2], env=made.env, stdout=log, stderr=log)


def wait_for(job: subprocess.Popen, out: Path, ready: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 180
    while not (found := ready()):
        assert job.poll() is None, (out / "log").read_text()[-3000:]
        assert time.monotonic() < deadline, (out / "log").read_text()[-3000:]
        time.sleep(0.05)
    return found


def checkpoints(out: Path) -> list[Path]:
    return list(out.glob("model.checkpoints/*/checkpoint*/state.json"))


def a_worker(made: Cluster) -> Node | None:
    """A node with a training worker."""
    found = [
        node
        for node in made.nodes.values()
        if any(command.startswith("ray::RayTrainWorker") for command in node.pids().values())
    ]
    return found[-1] if found else None


def ended(job: subprocess.Popen, out: Path, tiles: str, steps: int) -> dict[str, Any]:
    """The model's record, once the job is done and its weights are those of one process."""
    assert job.wait(240) == 0, (out / "log").read_text()[-4000:]
    opened = open_model(str(out / "model"))
    weights = opened.pipeline.unet.state_dict()
    alone = expected(tiles, steps)
    assert weights.keys() == alone.keys()
    worst = max(float((weights[name] - alone[name]).abs().max()) for name in alone)
    assert worst < TOLERANCE, worst
    assert opened.record["steps"] == steps
    return dict(opened.record)


def test_a_node_lost_without_notice_costs_no_more_than_the_steps_since_the_last_checkpoint(
    nodes: Cluster, tiny_tiles: str, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with watching(every_s=2.0) as seen:
        job = start(nodes, tiny_tiles, out, STEPS, train_workers=4, train_workers_min=2)
        wait_for(job, out, lambda: checkpoints(out))
        node = a_worker(nodes)
        assert node is not None
        nodes.lose(node)
        record = ended(job, out, tiny_tiles, STEPS)
    assert {listener for listener in seen if listener.outward} == set()
    assert len({listener.pid for listener in seen if "raylet" in listener.command}) >= 4
    assert record["num_restarts"] >= 1
    assert record["workers"] == 3, "it goes on with those that are left, rows shared unevenly"
    assert record["steps_redone"] <= EVERY
    nodes.add(num_cpus=1)


def test_a_node_that_is_told_to_leave_costs_no_step(nodes: Cluster, tiny_tiles: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    job = start(nodes, tiny_tiles, out, NOTICED, train_workers=2)
    wait_for(job, out, lambda: "train 10/" in (out / "log").read_text() or checkpoints(out))
    node = a_worker(nodes)
    assert node is not None
    assert nodes.drain(node, 10).wait(60) == 0
    wait_for(job, out, lambda: "this node leaves" in (out / "log").read_text())
    time.sleep(10)
    nodes.lose(node)
    record = ended(job, out, tiny_tiles, NOTICED)
    assert "a checkpoint comes first" in (out / "log").read_text()
    assert record["num_restarts"] == 1
    assert record["steps_redone"] == 0
