"""What a submission is given, and what becomes of its exit status; the cluster itself is in tests/end_to_end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from canaries import CANARIES, leaks

from dakter.errors import ConfigError, ConflictError, DakterError, GateError, Stopped
from jobs import _submission, generate, pipeline, prepare
from jobs._cli import Job, main
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


class NoAgentYet:
    """A job server without an agent for the first calls: a head in its first seconds, which no test can time."""

    def __init__(self, refusals: int):
        self.refusals, self.asked = refusals, 0

    def list_jobs(self) -> list[Any]:
        return []

    def submit_job(self, **about: Any) -> None:
        self.asked += 1
        if self.asked <= self.refusals:
            raise RuntimeError("Request failed with status code 500: No available agent to submit job, please try ...")


def test_a_head_without_an_agent_is_asked_again_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10**6))
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr("time.monotonic", lambda: float(next(clock)))
    late, never, stopped = NoAgentYet(3), NoAgentYet(10**6), NoAgentYet(10**6)

    def begin(server: NoAgentYet, *, stop: bool = False) -> Submission:
        cluster = _submission.Cluster(server, "r", SubmissionConfig())
        return cluster._begin("train", "settings.yaml", True, 0.0, lambda: stop)

    assert (begin(late).id, late.asked) == ("dakter-r-train-1", 4)
    with pytest.raises(DakterError, match="train: the cluster refused the submission"):
        begin(never)
    assert 4 < never.asked < 60
    with pytest.raises(Stopped, match="train: stopped as asked, not submitted"):
        begin(stopped, stop=True)
    assert stopped.asked == 1


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


def test_no_secret_travels_from_outside_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA")
    monkeypatch.setenv("AWS_CA_BUNDLE", "/etc/ca.pem")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://user:{CANARIES['AWS_SECRET_ACCESS_KEY']}@127.0.0.1:1")
    given = _submission._runtime_env(SubmissionConfig())
    assert leaks({"runtime_env": repr(given).encode()}) == set()
    assert "AWS_ACCESS_KEY_ID" not in given["env_vars"], "botocore refuses half a pair"
    assert given["env_vars"]["AWS_CA_BUNDLE"] == "/etc/ca.pem"


def test_a_submitted_pipeline_hands_on_what_it_was_given_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"working_dir": "gcs://_ray_pkg_1.zip", "env_vars": {"AWS_REGION": "eu-west-1"}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"runtime_env": own}))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of the node")
    given = _submission._runtime_env(SubmissionConfig())
    assert given["working_dir"] == own["working_dir"]
    assert given["env_vars"] == {"AWS_REGION": "eu-west-1", "RAY_JOB_STOP_WAIT_TIME_S": "120"}


def test_a_submitted_pipeline_hands_on_no_secret_that_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    harmless = {"AWS_REGION": "eu-west-1", "TOKENIZERS_PARALLELISM": "false", "MLFLOW_TRACKING_URI": "http://m:5000"}
    harmless["AWS_WEB_IDENTITY_TOKEN_FILE"] = "/var/run/token"
    secret = {**CANARIES, "AWS_ACCESS_KEY_ID": "AKIA", "MLFLOW_TRACKING_USERNAME": "me", "HF_TOKEN": "x"}
    secret["HTTPS_PROXY"] = f"http://me:{CANARIES['MLFLOW_TRACKING_PASSWORD']}@proxy:3128"
    own = {"env_vars": harmless | secret}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"runtime_env": own}))
    assert _submission._runtime_env(SubmissionConfig())["env_vars"] == {**harmless, "RAY_JOB_STOP_WAIT_TIME_S": "120"}
    alone = {"env_vars": {"MLFLOW_TRACKING_USERNAME": "me"}}  # nodes may have the password
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"runtime_env": alone}))
    assert _submission._runtime_env(SubmissionConfig())["env_vars"]["MLFLOW_TRACKING_USERNAME"] == "me"


def test_a_job_names_the_secrets_that_came_with_it_and_shows_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    own = {"env_vars": {**CANARIES, "AWS_REGION": "eu-west-1"}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"runtime_env": own}))
    assert main(prepare.JOB, ["--out", str(tmp_path), "--dry-run"]) == 0
    told = capsys.readouterr().err
    names = "AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, MLFLOW_TRACKING_PASSWORD, MLFLOW_TRACKING_TOKEN"
    assert f"secrets came with the submission of this job: {names}. " in told
    assert leaks({"log": told.encode()}) == set()
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"runtime_env": {"env_vars": {"AWS_REGION": "x"}}}))
    assert main(prepare.JOB, ["--out", str(tmp_path), "--dry-run"]) == 0
    assert "secrets came" not in capsys.readouterr().err


@pytest.mark.parametrize("job", [prepare.JOB, generate.JOB, pipeline.JOB], ids=lambda job: job.name)
@pytest.mark.parametrize("address", ["http://me:{}@mlflow:5000", "postgresql://me@db/mlflow?password={}"])
def test_a_tracking_address_with_a_password_is_refused_with_the_remedy(
    job: Job[Any], address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address.format(CANARIES["MLFLOW_TRACKING_PASSWORD"]))
    assert main(job, ["--out", str(tmp_path / "run"), "--preset", "tiny"]) == 2
    told = capsys.readouterr().err
    assert "MLFLOW_TRACKING_URI holds a password" in told
    assert "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in told
    assert leaks({"log": told.encode()}) == set()
    assert not (tmp_path / "run").exists()
