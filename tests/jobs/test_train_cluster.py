"""Training over several raylets, each with a disk and HOME of its own: the weights of one process, whatever is lost."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from joined_job import JoinedJob, join, node_with
from listeners import watching

from dakter.data.tiles import TileCorpus
from dakter.diffusion.fit import fit
from dakter.diffusion.pipeline import open_model
from jobs import _cli, train
from jobs.suites._raylets import Cluster, cluster

pytestmark = pytest.mark.timeout(400)
STEPS, EVERY = 30, 10
NOTICED = 200  # steps where a node is told to leave: the notice must come while there is still much to do
WORKER = "ray::RayTrainWorker"
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


def wanted(tiles: str, out: Path, steps: int, **ray: Any) -> train.TrainSettings:
    """Settings of a training; ``ray``: those of its table."""
    overrides = {
        "out": str(out),
        "paths.tiles": tiles,
        "tracking.uri": f"sqlite:///{Path(tiles).parent}/mlflow.db",  # made once for all of them
        "ray.train_cpus": 1,
        **FLAGS,
        "train.steps": steps,
        **{f"ray.{key}": value for key, value in ray.items()},
    }
    return _cli.resolve(train.TrainSettings, preset="tiny", overrides=overrides)


@functools.cache
def expected(tiles: str, steps: int) -> dict[str, torch.Tensor]:
    """Weights after the same batches in one process, without Ray."""
    settings = wanted(tiles, Path("unused"), steps)
    result = fit(
        settings.network,
        settings.diffusion,
        settings.train,
        train.training_data(TileCorpus.open(tiles), settings.diffusion, with_val=True),
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


def checkpoints(job: JoinedJob) -> list[Path]:
    return list(job.out.glob("model.checkpoints/*/checkpoint*/state.json"))


def ended(job: JoinedJob, tiles: str, steps: int) -> dict[str, Any]:
    """The model's record, once the job is done and its weights are those of one process."""
    assert job.ended() == 0, job.log()[-4000:]
    opened = open_model(str(job.out / "model"))
    weights = opened.pipeline.unet.state_dict()
    alone = expected(tiles, steps)
    assert weights.keys() == alone.keys()
    worst = max(float((weights[name] - alone[name]).abs().max()) for name in alone)
    assert worst < TOLERANCE, worst
    assert opened.record["steps"] == steps
    return dict(opened.record)


@pytest.mark.parametrize("workers", [2, 4])
def test_several_workers_give_the_weights_of_one_for_the_same_batches(
    workers: int, nodes: Cluster, tiny_tiles: str, tmp_path: Path
) -> None:
    job = join(nodes, "train", wanted(tiny_tiles, tmp_path / "run", STEPS, train_workers=workers))
    record = ended(job, tiny_tiles, STEPS)
    assert (record["workers"], record["num_restarts"], record["steps_redone"]) == (workers, 0, 0)


def test_a_node_lost_without_notice_costs_no_more_than_the_steps_since_the_last_checkpoint(
    nodes: Cluster, tiny_tiles: str, tmp_path: Path
) -> None:
    with watching(every_s=2.0) as seen:
        job = join(nodes, "train", wanted(tiny_tiles, tmp_path / "run", STEPS, train_workers=4, train_workers_min=2))
        job.until(lambda: checkpoints(job))
        nodes.lose(node_with(nodes, WORKER))
        record = ended(job, tiny_tiles, STEPS)
    assert {listener for listener in seen if listener.outward} == set()
    assert len({listener.pid for listener in seen if "raylet" in listener.command}) >= 4
    assert record["num_restarts"] >= 1
    assert record["workers"] == 3, "it goes on with those that are left, rows shared unevenly"
    assert record["steps_redone"] <= EVERY
    nodes.add(num_cpus=1)


def test_a_node_that_is_told_to_leave_costs_no_step(nodes: Cluster, tiny_tiles: str, tmp_path: Path) -> None:
    job = join(nodes, "train", wanted(tiny_tiles, tmp_path / "run", NOTICED, train_workers=2))
    job.until(lambda: job.said("train 10/") or checkpoints(job))
    node = node_with(nodes, WORKER)
    assert nodes.drain(node, 10).wait(60) == 0
    job.until(lambda: job.said("this node leaves"))
    time.sleep(10)
    nodes.lose(node)
    record = ended(job, tiny_tiles, NOTICED)
    assert job.said("a checkpoint comes first")
    assert record["num_restarts"] == 1
    assert record["steps_redone"] == 0


@pytest.mark.slow
def test_nodes_that_do_not_come_back_end_training_with_what_was_asked_for(
    nodes: Cluster, tiny_tiles: str, tmp_path: Path
) -> None:
    number = len(nodes.nodes)
    settings = wanted(tiny_tiles, tmp_path / "run", NOTICED, train_workers=number, start_timeout_s=30)
    job = join(nodes, "train", settings)
    job.until(lambda: checkpoints(job))
    nodes.lose(node_with(nodes, WORKER))
    assert job.ended() == 1
    has = f"{ {'CPU': number - 1.0, 'GPU': 0.0} } on {number} node(s), room for {number - 1}"  # one is the head
    assert f"asked for {number} x { {'CPU': 1.0} }, not there within 30 s; the cluster has {has}" in job.log()
    assert checkpoints(job), "the same command goes on from there"
