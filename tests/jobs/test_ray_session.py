"""What a job hands to Ray: no variable twice, and its own Ray on loopback alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs._ray import RayConfig, environment, session


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
