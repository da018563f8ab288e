"""``ray job stop`` on single jobs: what is committed is kept, and the same command goes on from there to the end."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from copied_pairs import sweep_settings
from ray_head import Head
from tiny_model import put_tiny_model

from jobs import _cli, generate, train
from jobs._cli import JobSettings


@dataclass(frozen=True)
class Case:
    """A job to be stopped; patterns are below its folder.

    Attributes:
        settings: of the job.
        begun: pattern of what stands when it is time to stop.
        kept: pattern of what must stand after the stop.
        stays: whether that is there, unaltered, when the job is done; a training removes its checkpoints.
        done: what stands when the job is done, and not before.
        resumes: what the next start says of the work that it finds.
        wait_s: that Ray gives a stopped job before it kills it; None: Ray's own three seconds.
    """

    settings: JobSettings
    begun: str
    kept: str
    done: str
    resumes: str
    stays: bool = True
    wait_s: int | None = 60

    def files(self, pattern: str) -> dict[Path, int]:
        """What matches the pattern, with the time of its last change."""
        return {path: path.stat().st_mtime_ns for path in Path(self.settings.out).glob(pattern)}


def training(tiles: str, sources: dict[str, str], out: Path) -> Case:
    overrides: dict[str, Any] = {"out": str(out), "paths.tiles": tiles}
    overrides |= {"tracking.uri": f"sqlite:///{Path(tiles).parent}/mlflow.db"}
    # Large enough that the stop comes long before the end.
    overrides |= {"network.widths": [48, 64], "network.blocks": [2, 2], "train.steps": 80, "ray.train_cpus": 1}
    settings = _cli.resolve(train.TrainSettings, preset="tiny", overrides=overrides)
    checkpoints = "model.checkpoints/*/checkpoint*/state.json"
    return Case(settings, checkpoints, checkpoints, "model/model.json", "resuming from checkpoint", stays=False)


def generation(tiles: str, sources: dict[str, str], out: Path) -> Case:
    put_tiny_model(f"{out}/model")
    overrides: dict[str, Any] = {"out": str(out), "ray.generate_workers": 1}
    overrides |= {"sampler.steps": 100, "sampler.micro_batch": 8, "sampler.precision": "fp32"}
    overrides |= {"corpus.num_samples": 160, "corpus.samples_per_shard": 8}
    settings = _cli.resolve(generate.GenerateSettings, overrides=overrides)
    commits = "corpus/commits/0*.json"
    return Case(settings, commits, commits, "corpus/manifest.json", "of 160 samples stand", wait_s=None)


def sweep(tiles: str, sources: dict[str, str], out: Path) -> Case:
    more = {"tracking.uri": f"sqlite:///{Path(tiles).parent}/mlflow.db", "students.steps": 20, "sweep.num_trials": 3}
    settings = sweep_settings(sources, out, **more, **{"ray.trial_workers": 1})
    first_arm, second_arm = "sweep/search-real.json", "sweep/previews/distilled-*.npz"
    return Case(settings, second_arm, first_arm, "sweep/sweep.json", "distilled: the search goes on from")


@pytest.mark.parametrize("make", [training, generation, sweep])
def test_a_stopped_job_keeps_its_work_and_the_same_command_ends_it(
    make: Callable[..., Case], ray_head: Head, tiny_tiles: str, sources: dict[str, str], tmp_path: Path
) -> None:
    case, client = make(tiny_tiles, sources, tmp_path / "run"), ray_head.jobs()
    (tmp_path / "settings.yaml").write_text(case.settings.to_yaml())
    name = type(case.settings).__name__.removesuffix("Settings").lower()
    command = f"python jobs/{name}.py --config {shlex.quote(str(tmp_path / 'settings.yaml'))}"
    given = {} if case.wait_s is None else {"RAY_JOB_STOP_WAIT_TIME_S": str(case.wait_s)}

    def submit() -> str:
        return str(client.submit_job(entrypoint=command, runtime_env={"env_vars": given}))

    def state(job: str) -> str:
        return str(client.get_job_status(job).value)

    def until(ready: Callable[[], Any], job: str) -> None:
        deadline = time.monotonic() + 180
        while not ready():
            assert time.monotonic() < deadline, client.get_job_logs(job)[-4000:]
            time.sleep(0.1)

    first = submit()
    until(lambda: case.files(case.begun) or state(first) not in ("PENDING", "RUNNING"), first)
    client.stop_job(first)  # what `ray job stop` calls
    until(lambda: state(first) not in ("PENDING", "RUNNING"), first)
    assert state(first) == "STOPPED", client.get_job_logs(first)[-4000:]
    kept = case.files(case.kept)
    assert kept
    assert not case.files(case.done), "it was stopped in the midst of its work"
    if case.wait_s:
        assert "the same command resumes" in client.get_job_logs(first)[-4000:], "it had the time to end by itself"

    second = submit()
    until(lambda: state(second) not in ("PENDING", "RUNNING"), second)
    said = client.get_job_logs(second)
    assert state(second) == "SUCCEEDED", said[-4000:]
    assert case.resumes in said
    assert case.files(case.done)
    assert (kept.items() <= case.files(case.kept).items()) == case.stays, "nothing that was kept was made again"
