"""What a submission is given, and what becomes of its exit status; the cluster itself is in tests/end_to_end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dakter.errors import ConfigError, ConflictError, DakterError, GateError, Stopped
from jobs import _submission, generate
from jobs._submission import Submission, SubmissionConfig, put_settings


def ended(state: str, status: int | None) -> Submission:
    return Submission("dakter-r-promote-1", "promote", 1, state, status, "", "")


@pytest.mark.parametrize(
    ("state", "status", "kind"),
    [
        ("FAILED", 1, DakterError),
        ("FAILED", 2, ConfigError),
        ("FAILED", 3, GateError),
        ("FAILED", 4, Stopped),
        ("STOPPED", None, Stopped),
    ],
)
def test_a_stage_ends_the_pipeline_as_it_would_have_in_process(
    state: str, status: int | None, kind: type[DakterError]
) -> None:
    with pytest.raises(DakterError) as told:
        _submission._raise_for(ended(state, status))
    assert type(told.value) is kind
    assert "dakter-r-promote-1" in str(told.value)


def test_a_stage_that_succeeded_raises_nothing() -> None:
    _submission._raise_for(ended("SUCCEEDED", 0))


def test_running_with_other_settings_is_refused_with_their_names(tmp_path: Path) -> None:
    first = generate.GenerateSettings(out=str(tmp_path))
    other = first.model_copy(update={"corpus": first.corpus.model_copy(update={"seed": 9})})
    there, here = (put_settings(str(tmp_path), "generate", one) for one in (first, other))
    running = Submission("dakter-r-generate-2", "generate", 2, "RUNNING", None, there, "")
    _submission._check_same(running, put_settings(str(tmp_path), "generate", first))
    with pytest.raises(ConflictError, match=r"corpus\.seed: 0 there, 9 asked for"):
        _submission._check_same(running, here)


def test_documented_variables_travel_from_outside_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:2")
    monkeypatch.setenv("SOMETHING_ELSE", "stays")
    given = _submission._runtime_env(SubmissionConfig(working_dir=".", stop_wait_s=77))
    assert given["working_dir"] == "."
    assert given["env_vars"]["AWS_ENDPOINT_URL"] == "http://127.0.0.1:1"
    assert given["env_vars"]["MLFLOW_TRACKING_URI"] == "http://127.0.0.1:2"
    assert given["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"] == "77"
    assert "SOMETHING_ELSE" not in given["env_vars"]


def test_a_submitted_pipeline_hands_on_what_it_was_given_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"working_dir": "gcs://_ray_pkg_1.zip", "env_vars": {"AWS_REGION": "eu-west-1"}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"runtime_env": own}))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of the node")
    given = _submission._runtime_env(SubmissionConfig())
    assert given["working_dir"] == own["working_dir"]
    assert given["env_vars"] == {"AWS_REGION": "eu-west-1", "RAY_JOB_STOP_WAIT_TIME_S": "120"}
