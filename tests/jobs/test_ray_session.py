"""What a job hands to Ray: no variable twice, and its own Ray on loopback alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dakter.config import load
from dakter.errors import ConfigError, StorageError
from jobs._ray import RayConfig, ResourceDeadline, environment, session


def test_variables_that_came_with_the_submission_are_not_given_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary")
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    submitted = {"runtime_env": {"env_vars": {"AWS_SECRET_ACCESS_KEY": "canary"}}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(submitted))
    assert "AWS_SECRET_ACCESS_KEY" not in environment(), "Ray would refuse, and print both"
    assert environment()["AWS_REGION"] == "eu-north-1"


def listening() -> set[str]:
    """Addresses in state LISTEN (0A), as the kernel writes them: hexadecimal, by 32-bit words in host order."""
    rows = [line.split() for table in ("tcp", "tcp6") for line in Path("/proc/net", table).read_text().splitlines()[1:]]
    return {row[1] for row in rows if row[3] == "0A"}


def test_a_ray_that_a_job_starts_listens_on_loopback_alone() -> None:
    before = listening()
    with session(RayConfig()) as ray:
        assert ray.get(ray.remote(lambda: 1).remote()) == 1
        opened = listening() - before
    assert opened, "a Ray listens somewhere"
    loopback = ("0100007F:", "0000000000000000FFFF00000100007F:", "00000000000000000000000001000000:")
    assert not {address for address in opened if not address.startswith(loopback)}


class OneNode:
    """Ray's view of a cluster of a single node of two CPUs."""

    class exceptions:
        RayError = RuntimeError

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "NodeID": "a", "Resources": {"CPU": 2.0}}]

    def available_resources(self) -> dict[str, float]:
        return {"CPU": 0.5}


def test_a_wait_for_what_does_not_come_ends_and_says_what_was_asked_for() -> None:
    clock = iter([0.0, 5.0, 9.0, 14.0, 20.1])
    deadline = ResourceDeadline(OneNode(), {"CPU": 1.0, "GPU": 1.0}, 2, 10.0, now=lambda: next(clock))
    assert not deadline.fits()
    deadline.check(at_work=False)
    deadline.check(at_work=True)  # the wait begins anew
    deadline.check(at_work=False)
    asked, has = r"asked for 2 x .*'GPU': 1\.0.*within 10 s", r"the cluster has .*'CPU': 2\.0.*now: .*'CPU': 0\.5"
    with pytest.raises(StorageError, match=f"{asked}; {has}"):
        deadline.check(at_work=False)
    assert ResourceDeadline(OneNode(), {"CPU": 1.0}, 2, 10.0).fits()


def test_fewer_workers_than_the_fewest_is_refused() -> None:
    with pytest.raises(ConfigError, match="train_workers_min is 3; expected at most train_workers, 2"):
        load(RayConfig, {"train_workers": 2, "train_workers_min": 3})
