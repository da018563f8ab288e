"""Tracking against real backends: SQLite files and an MLflow server on loopback."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from mlflow_server import tracking_server

from dakter import storage
from dakter.errors import ConfigError, ConflictError, IntegrityError, StorageError
from dakter.tracking import Tracker, TrackingConfig


class Doubler(torch.nn.Module):
    """Two "probabilities" from one raw band."""

    def forward(self, raw_BCHW: torch.Tensor) -> torch.Tensor:
        return torch.cat([raw_BCHW * 2, raw_BCHW + 1], dim=1)


class Branching(torch.nn.Module):
    """Its graph cannot be right for every size: the trace keeps one branch."""

    def forward(self, raw_BCHW: torch.Tensor) -> torch.Tensor:
        flip = raw_BCHW.flip(3) if torch.compiler.is_compiling() else raw_BCHW
        return torch.cat([flip, raw_BCHW], dim=1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a real server with SQLite behind it."""
    with tracking_server(tmp_path_factory.mktemp("server")) as address:
        yield address


def log_doubler(tracker: Tracker, folder: Path, digest: str = "d1") -> tuple[str, Tracker]:
    (folder / "weights").mkdir(parents=True, exist_ok=True)
    (folder / "weights" / "weights.safetensors").write_bytes(b"weights")
    run = tracker.run(f"promotion:{digest}", name="promote")
    example = torch.arange(2 * 5 * 7, dtype=torch.float32).reshape(2, 1, 5, 7)
    version = tracker.log_student(
        run,
        Doubler(),
        example,
        num_classes=2,
        weights=folder / "weights",
        metadata={"bands": ["VV"]},
        digest=digest,
        tags={"dakter.arm": "real"},
    )
    run.end()
    return version.number, tracker


@pytest.mark.parametrize("backend", ["sqlite", "server"])
def test_runs_models_and_aliases(backend: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    uri = request.getfixturevalue("server") if backend == "server" else None
    tracker = Tracker.open(TrackingConfig(uri=uri, experiment="e"), str(tmp_path))
    if uri is None:
        assert tracker.uri == f"sqlite:///{tmp_path}/mlflow.db"
    sweep = tracker.run("sweep", name="sweep")
    trial = tracker.run("trial-1", name="trial 1", parent=sweep.id, tags={"arm": "real"})
    trial.params({"train": {"steps": 3}, "seed": 0})
    trial.params({"seed": 0})
    with pytest.raises(ConflictError, match="seed"):
        trial.params({"seed": 1})
    trial.metrics({"val/miou": 0.25}, step=10)
    trial.document({"a": [1]}, "x/y.json")
    trial.dataset("tiles", "s3://b/tiles", "f" * 64, "train")
    trial.end("KILLED")
    again = Tracker.open(TrackingConfig(uri=tracker.uri, experiment="e"), str(tmp_path)).run("trial-1", name="trial 1")
    assert again.id == trial.id
    found = tracker._client.get_run(trial.id)
    assert found.info.status == "RUNNING"
    assert found.data.params == {"train.steps": "3", "seed": "0"}
    assert found.data.metrics == {"val/miou": 0.25}
    assert found.data.tags["mlflow.parentRunId"] == sweep.id
    (lineage,) = found.inputs.dataset_inputs
    assert json.loads(lineage.dataset.source) == {"url": "s3://b/tiles", "digest": "f" * 64}
    assert again.read("x/y.json") == storage.to_json_bytes({"a": [1]})
    assert again.read("x/z.json") is None

    assert tracker.registry.alias("champion") is None
    number, _ = log_doubler(tracker, tmp_path)
    assert tracker.registry.alias("champion") is None
    assert log_doubler(tracker, tmp_path)[0] == number == "1"  # the same package is the same version
    assert log_doubler(tracker, tmp_path, "d2")[0] == "2"
    one, two = tracker.registry.find("d1"), tracker.registry.find("d2")
    assert one is not None
    assert two is not None
    assert [version.number for version in tracker.registry.versions()] == ["2", "1"]
    tracker.registry.set_alias("champion", one)
    tracker.registry.tag_version(one, {"dakter.x": "y", "dakter.arm": None, "dakter.unknown": None})
    champion = tracker.registry.alias("champion")
    assert champion is not None
    assert champion.tags == {"dakter.package": "d1", "dakter.x": "y"}
    raw = torch.rand(1, 1, 4, 9)
    torch.testing.assert_close(tracker.load_student(champion)(raw), Doubler()(raw))


def test_model_files(tmp_path: Path) -> None:
    tracker = Tracker.open(TrackingConfig(), str(tmp_path))
    log_doubler(tracker, tmp_path / "scratch")
    (found,) = (tmp_path / "mlartifacts").rglob("MLmodel")
    names = {path.relative_to(found.parent).as_posix() for path in found.parent.rglob("*") if path.is_file()}
    assert {"data/model.pt2", "student/weights.safetensors"} <= names
    assert not [name for name in names if name.endswith((".pth", ".pkl"))]
    model = yaml.safe_load(found.read_text())
    shapes = [json.loads(model["signature"][side])[0]["tensor-spec"]["shape"] for side in ("inputs", "outputs")]
    assert shapes == [[-1, 1, -1, -1], [-1, 2, -1, -1]]
    assert model["metadata"] == {"bands": ["VV"]}


def test_a_graph_that_differs_is_not_registered(tmp_path: Path) -> None:
    tracker = Tracker.open(TrackingConfig(), str(tmp_path))
    run = tracker.run("x", name="x")
    with pytest.raises(IntegrityError, match="does not do what the network does"):
        tracker.log_student(
            run, Branching(), torch.rand(2, 1, 5, 7), num_classes=2, weights=tmp_path, metadata={}, digest="d"
        )
    assert tracker.registry.versions() == []


def test_lineage_source_finds_a_changed_corpus(tmp_path: Path) -> None:
    tracker = Tracker.open(TrackingConfig(), str(tmp_path))
    run = tracker.run("x", name="x")
    run.dataset("tiles", str(tmp_path), "a" * 64, "train")
    import mlflow.data

    dataset = tracker._client.get_run(run.id).inputs.dataset_inputs[0].dataset
    source = mlflow.data.get_source(dataset)
    storage.put_json(f"{tmp_path}/manifest.json", {"digest": "a" * 64})
    assert source.load() == str(tmp_path)
    storage.put_json(f"{tmp_path}/manifest.json", {"digest": "b" * 64})
    with pytest.raises(IntegrityError, match="make it again"):
        source.load()


def test_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ConfigError, match=r"--tracking\.uri"):
        Tracker.open(TrackingConfig(), "s3://bucket/run")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{probe.getsockname()[1]}")
        start = time.monotonic()
        with pytest.raises(StorageError, match="no MLflow server answers"):
            Tracker.open(TrackingConfig(), str(tmp_path))
        assert time.monotonic() - start < 20


def _open_and_log(folder: str, index: int, gate: object) -> None:
    gate.wait()  # type: ignore[attr-defined]
    Tracker.open(TrackingConfig(), folder).run(f"run-{index}", name="x").end()


def test_many_processes_on_a_fresh_database(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    gate = context.Barrier(4)
    workers = [context.Process(target=_open_and_log, args=(str(tmp_path), i, gate)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0] * 4
    tracker = Tracker.open(TrackingConfig(), str(tmp_path))
    assert len(tracker._client.search_runs([tracker._experiment_id])) == 4


def test_lock(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    first = Tracker.open(TrackingConfig(uri=uri, lock_wait_s=0), str(tmp_path)).registry
    with first.lock("host:1") as check:
        check()
        with pytest.raises(ConflictError, match=r"'host:1 .*delete the registered model dakter-segmenter\.lock"):
            first.lock("host:2").__enter__()
        # Its holder seems gone: it is taken over, and the slow holder may not move anything any more.
        impatient = Tracker.open(TrackingConfig(uri=uri, lock_wait_s=0, lock_stale_min=1e-6), str(tmp_path)).registry
        with impatient.lock("host:3") as theirs:
            theirs()
            with pytest.raises(ConflictError, match="taken over by host:3"):
                check()
    with first.lock("host:4") as check:  # released by all, and by nobody else than its owner
        check()


def test_nothing_phones_home(tmp_path: Path) -> None:
    """In a process that looks like no test: no telemetry client, and no connection but to loopback."""
    code = (
        "import socket, sys\n"
        "def connect(self, address, *rest): raise SystemExit(f'connects to {address}')\n"
        "socket.socket.connect = connect\n"
        "from dakter.tracking import Tracker, TrackingConfig\n"
        "t = Tracker.open(TrackingConfig(), sys.argv[1]); t.run('a', name='a').end()\n"
        "from mlflow.telemetry import get_telemetry_client\n"
        "assert get_telemetry_client() is None"
    )
    keep = {key: os.environ[key] for key in ("PATH", "HOME", "OMP_NUM_THREADS") if key in os.environ}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, env=keep, cwd=Path(__file__).parent.parent)


def test_figures(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    tracker = Tracker.open(TrackingConfig(), str(tmp_path))
    run = tracker.run("x", name="x")
    figure = Figure()
    figure.add_subplot().plot(np.arange(3))
    run.figure(figure, "curves/loss.png")
    data = run.read("curves/loss.png")
    assert data is not None
    assert data[:4] == b"\x89PNG"
