"""jobs/train.py on a real Ray: killed workers, stops, second starts, other settings."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from listeners import watching

from dakter import config, storage
from dakter.diffusion.pipeline import open_model
from dakter.errors import ConflictError, Stopped
from jobs import _cli, train
from jobs._cli import Stop
from jobs._ray import RayConfig, session

pytestmark = pytest.mark.usefixtures("own_ray")


@pytest.fixture(scope="module")
def own_ray() -> Any:
    """One loopback Ray for the whole module; the job's own session joins it."""
    with session(RayConfig(num_cpus=4)) as ray:
        yield ray


def settings(tiles: str, out: Path, **changes: Any) -> train.TrainSettings:
    over = {"out": str(out), "paths.tiles": tiles, "ray.train_cpus": 1, "train.precision": "fp32"}
    over["tracking.uri"] = f"sqlite:///{Path(tiles).parent}/mlflow.db"
    return _cli.resolve(
        train.TrainSettings, preset="tiny", overrides=over | {k.replace("__", "."): v for k, v in changes.items()}
    )


def workers() -> list[int]:
    """Process ids of Ray Train's workers that are children of this test's Ray."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            name = (entry / "cmdline").read_bytes().decode(errors="replace") if entry.name.isdigit() else ""
        except OSError:
            continue
        if name.startswith("ray::RayTrainWorker"):
            found.append(int(entry.name))
    return found


def in_background(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def wait_for(ready: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def checkpoints(out: Path) -> list[Path]:
    """Folders of checkpoints that a restart would find."""
    return [path.parent for path in out.glob("model.checkpoints/*/checkpoint*/state.json")]


@pytest.fixture(scope="module")
def undisturbed(tiny_tiles: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Digest of the model that two workers train when nothing goes wrong."""
    out = tmp_path_factory.mktemp("undisturbed")
    with watching() as seen:
        figures = train.run(settings(tiny_tiles, out, ray__train_workers=2), Stop())
    workers_of_it = {listener.pid for listener in seen if listener.command.startswith("ray::RayTrainWorker")}
    assert len(workers_of_it) == 2
    assert {listener for listener in seen if listener.outward} == set(), "its process group meets on loopback as well"
    assert figures["num_steps"] == settings(tiny_tiles, out).train.steps
    assert not checkpoints(out), "checkpoints go when the model stands"
    return str(figures["model_digest"])


def test_a_second_start_says_that_it_is_done(tiny_tiles: str, tmp_path: Path) -> None:
    wanted = settings(tiny_tiles, tmp_path)
    first = train.run(wanted, Stop())
    before = {name: os.stat(tmp_path / "model" / name).st_mtime_ns for name in storage.sizes(str(tmp_path / "model"))}
    second = train.run(wanted, Stop())
    assert second["already_done"] is True
    assert second["model_digest"] == first["model_digest"]
    assert before == {name: os.stat(tmp_path / "model" / name).st_mtime_ns for name in before}
    with pytest.raises(ConflictError, match=r"train\.learning_rate"):
        train.run(settings(tiny_tiles, tmp_path, train__learning_rate=0.01), Stop())


def test_a_killed_worker_costs_nothing_but_time(tiny_tiles: str, tmp_path: Path, undisturbed: str) -> None:
    killed: list[int] = []

    def kill_one() -> None:
        wait_for(lambda: bool(checkpoints(tmp_path)) and len(workers()) == 2)
        killed.append(workers()[0])
        os.kill(killed[0], signal.SIGKILL)

    killer = in_background(kill_one)
    figures = train.run(settings(tiny_tiles, tmp_path, ray__train_workers=2), Stop())
    killer.join(5)
    assert killed, "the test must have killed a worker in mid-training"
    assert figures["model_digest"] == undisturbed


@pytest.mark.slow
def test_a_stop_keeps_a_checkpoint_and_the_same_command_ends_equal(tiny_tiles: str, tmp_path: Path) -> None:
    stop = Stop()

    def ask() -> None:
        wait_for(lambda: bool(checkpoints(tmp_path)))
        stop.requested = True

    thread = in_background(ask)
    wanted = settings(tiny_tiles, tmp_path, ray__train_workers=2, train__steps=120)
    with pytest.raises(Stopped, match="same command resumes"):
        train.run(wanted, stop)
    thread.join(5)
    assert checkpoints(tmp_path)
    assert not storage.exists(str(tmp_path / "model/model.json"))
    ended = train.run(wanted, Stop())["model_digest"]
    straight = settings(tiny_tiles, tmp_path / "straight", ray__train_workers=2, train__steps=120)
    assert ended == train.run(straight, Stop())["model_digest"]


def test_the_model_records_where_it_came_from(tiny_tiles: str, tmp_path: Path) -> None:
    wanted = settings(tiny_tiles, tmp_path)
    train.run(wanted, Stop())
    record = open_model(str(tmp_path / "model")).record
    tiles_digest = storage.read_json(storage.join(tiny_tiles, "manifest.json"))["digest"]
    assert record["tiles_digest"] == tiles_digest
    assert record["identity"]["train"]["steps"] == wanted.train.steps
    assert 0 < record["b"] < 1
    assert config.differences(train.identity(wanted, tiles_digest), record["identity"]) == []


def test_the_model_is_that_of_the_best_look_at_val(tiny_tiles: str, tmp_path: Path) -> None:
    import mlflow

    kept = {"train__validate_every": 10, "train__keep": "best", "train__patience": 1, "train__learning_rate": 0.03}
    wanted = settings(tiny_tiles, tmp_path, **kept, ray__train_workers=2)
    figures = train.run(wanted, Stop())
    record = open_model(str(tmp_path / "model")).record
    steps = [row["step"] for row in record["curve"]]
    best = min(record["curve"], key=lambda row: row["val_nll"])
    assert steps == list(range(10, figures["num_steps"] + 1, 10))
    assert figures["kept_step"] == record["kept_step"] == best["step"]
    assert best["step"] == steps[-2] < steps[-1] < wanted.train.steps, "at this rate it ends a look after the best"
    run = mlflow.MlflowClient(wanted.tracking.uri).search_runs(["0", "1"], order_by=["attributes.start_time DESC"])[0]
    told = mlflow.MlflowClient(wanted.tracking.uri).get_metric_history(run.info.run_id, "val_nll")
    assert [(point.step, point.value) for point in told] == [(row["step"], row["val_nll"]) for row in record["curve"]]
    with pytest.raises(ConflictError, match=r"train\.keep"):
        train.run(settings(tiny_tiles, tmp_path), Stop())
