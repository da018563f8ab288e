"""What a job hands to Ray, no variable twice and no secret; and what it waits for."""

from __future__ import annotations

import json
from typing import Any

import pytest
from canaries import CANARIES, leaks

from dakter.config import load
from dakter.errors import ConfigError, StorageError
from jobs._environment import environment
from jobs._ray import RayConfig, ResourceDeadline


def test_variables_that_came_with_the_submission_are_not_given_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    submitted = {"runtime_env": {"env_vars": {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(submitted))
    assert "AWS_ENDPOINT_URL" not in environment(), "Ray would refuse, and print both"
    assert environment()["AWS_REGION"] == "eu-north-1"


def test_no_secret_is_given_to_a_cluster_that_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)
    assert leaks({"runtime_env": repr(environment()).encode()}) == set()


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
