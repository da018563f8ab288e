"""Stages of a pipeline as Ray jobs of their own, so that they outlive the process that submitted them.

A submission is called ``dakter-<run>-<stage>-<attempt>``, so whoever starts the same pipeline again finds what is still
running by its name, and of two that start at once one submits and the other attaches. Everything else that is known
stands in the run's folder: this module keeps no state.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import yaml

from dakter import config, storage
from dakter.config import Config, setting
from dakter.errors import ConfigError, ConflictError, DakterError, GateError, Stopped
from jobs import _environment

log = logging.getLogger("dakter.jobs.pipeline")
T = TypeVar("T")

_RUN, _STAGE, _ATTEMPT, _SETTINGS = "dakter_run", "dakter_stage", "dakter_attempt", "dakter_settings"
_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
# Exit statuses that a job chooses itself (dakter/errors.py). Any other means that its process was ended from outside.
_OWN_WORD = (0, 1, 2, 3, 4)
_POLL_S = 1.0
_FIRST_PATIENCE_S = 20.0  # a wrong address or token does not mend itself
# A head that has just started answers before the agent that starts jobs is there; Ray's words for it.
_NO_AGENT, _AGENT_PATIENCE_S = "No available agent", 60.0


class SubmissionConfig(Config):
    """How ``jobs/pipeline.py`` submits its stages to a cluster; on one machine it runs them itself."""

    working_dir: str | None = setting(
        None,
        "folder sent along with every stage, such as a checkout; null: that of the pipeline's own submission, else the "
        "project as installed on the cluster",
        unit="path",
    )
    stage_cpus: int = setting(
        1, "CPUs asked for by prepare, evaluate and promote, which compute in their own process; 0: on the head", ge=0
    )
    evaluate_gpus: float = setting(
        0.0,
        "GPUs asked for by evaluate, where the joint model labels val and test: slow on CPUs at 256 px",
        ge=0,
    )
    max_attempts: int = setting(3, "starts of a stage whose process is killed from outside", ge=1)
    stop_wait_s: int = setting(120, "time a stage has to end after a stop before Ray kills it", unit="s", ge=3)
    patience_s: float = setting(600.0, "how long a cluster that does not answer is asked again", unit="s", ge=0)


@dataclass(frozen=True)
class Submission:
    """One attempt at a stage, as the cluster knows it.

    Attributes:
        state: Ray's word: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.
        exit_status: of its process; None while it runs, or if it was ended from outside.
        settings: URL of the settings it was given.
        message: Ray's own account of it.
    """

    id: str
    stage: str
    attempt: int
    state: str
    exit_status: int | None
    settings: str
    message: str

    @property
    def ended(self) -> bool:
        return self.state in _ENDED


def on_cluster() -> bool:
    """Whether this process is to submit to a cluster: inside a submitted job, or with the address of one set."""
    return any(os.environ.get(name) for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"))


class Cluster:
    """The job server of a cluster, as one run uses it."""

    def __init__(self, client: Any, run: str, settings: SubmissionConfig):
        self._client, self._run, self._settings = client, run, settings

    @classmethod
    def connect(cls, run: str, settings: SubmissionConfig) -> Cluster:
        """Find the job server by RAY_API_SERVER_ADDRESS or RAY_ADDRESS.

        Raises:
            DakterError: it does not answer.
        """
        from ray.job_submission import JobSubmissionClient

        logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)  # it tells of every closed log
        patience_s = min(settings.patience_s, _FIRST_PATIENCE_S)
        client = _patiently(lambda: JobSubmissionClient(), patience_s, "the cluster's job server")
        return cls(client, run, settings)

    def submissions(self) -> list[Submission]:
        """Those of this run, oldest attempt first."""
        found = [_read(job) for job in self._ask(self._client.list_jobs) if (job.metadata or {}).get(_RUN) == self._run]
        return sorted(found, key=lambda one: (one.stage, one.attempt))

    def run_stage(
        self, stage: str, settings: str, *, computes: bool, gpus: float = 0.0, stop: Callable[[], bool]
    ) -> None:
        """Attach to the stage if it is running, else submit it; returns when it is done.

        Args:
            stage: name of the job.
            settings: URL of its settings, named by their digest.
            computes: whether its own process does the work, and so needs CPUs.
            gpus: that its own process needs.
            stop: a wish to stop is passed on to the stage.

        Raises:
            GateError, ConfigError, Stopped, DakterError: by the exit status of the stage.
            ConflictError: it is running with other settings.
        """
        for start in range(1, self._settings.max_attempts + 1):
            submission = self._begin(stage, settings, computes, gpus, stop)
            ended = self._follow(submission, stop)
            if ended is not None and (ended.state != "FAILED" or ended.exit_status in _OWN_WORD):
                _raise_for(ended)
                return
            told = "the cluster no longer knows it" if ended is None else ended.message.strip().splitlines()[0]
            log.warning("%s (start %d of %d) was ended from outside: %s", submission.id, start, self._attempts, told)
            if stop():
                raise Stopped(f"{stage}: stopped as asked; the same command resumes")
        raise DakterError(
            f"{stage}: its process was ended from outside {self._attempts} times (a lost node, or out of memory); see "
            f"`ray job logs {submission.id}` and `ray status`, then start the same command again"
        )

    @property
    def _attempts(self) -> int:
        return self._settings.max_attempts

    def _begin(self, stage: str, settings: str, computes: bool, gpus: float, stop: Callable[[], bool]) -> Submission:
        """The running submission of the stage, or a new one."""
        deadline = time.monotonic() + min(self._settings.patience_s, _AGENT_PATIENCE_S)
        while True:
            earlier = [one for one in self.submissions() if one.stage == stage]
            if earlier and not earlier[-1].ended:
                _check_same(earlier[-1], settings)
                log.info("%s: attaching to %s, which is %s", stage, earlier[-1].id, earlier[-1].state.lower())
                return earlier[-1]
            attempt = earlier[-1].attempt + 1 if earlier else 1
            name = f"dakter-{self._run}-{stage}-{attempt}"
            try:
                self._client.submit_job(
                    entrypoint=f"python -m jobs.{stage} --config {shlex.quote(settings)}",
                    submission_id=name,
                    runtime_env=_runtime_env(self._settings),
                    metadata={_RUN: self._run, _STAGE: stage, _ATTEMPT: str(attempt), _SETTINGS: settings},
                    entrypoint_num_cpus=self._settings.stage_cpus or None if computes else None,
                    entrypoint_num_gpus=gpus or None,
                )
            except (RuntimeError, ConnectionError) as error:
                # Another pipeline may have been first, or the answer was lost: what stands tells.
                if name in {one.id for one in self.submissions()}:
                    continue
                if _NO_AGENT in str(error) and time.monotonic() < deadline:
                    if stop():
                        raise Stopped(f"{stage}: stopped as asked, not submitted; the same command goes on") from error
                    log.warning("%s: not submitted, the cluster has no agent for it yet; again in 2 s", stage)
                    time.sleep(2.0)
                    continue
                raise DakterError(f"{stage}: the cluster refused the submission ({error})") from error
            log.info("%s: submitted as %s", stage, name)
            return Submission(name, stage, attempt, "PENDING", None, settings, "")

    def _follow(self, submission: Submission, stop: Callable[[], bool]) -> Submission | None:
        """Show the log until the submission has ended; returns how, or None if the cluster has forgotten it."""
        ended, told = threading.Event(), False
        # Of a stage that was running before, only what comes from now on.
        skip = len(self._ask(lambda: self._client.get_job_logs(submission.id))) if submission.state == "RUNNING" else 0
        tail = threading.Thread(target=_show_log, args=(self._client, submission.id, skip, ended), daemon=True)
        tail.start()
        while True:
            now = self._look(submission.id)
            if now is None or now.ended:
                break
            if stop() and not told:
                told = True
                log.warning("%s: passing the stop on to %s", submission.stage, submission.id)
                self._ask(lambda: self._client.stop_job(submission.id))
            time.sleep(_POLL_S)
        ended.set()
        tail.join(30.0)
        return now

    def _look(self, name: str) -> Submission | None:
        def ask() -> Submission | None:
            try:
                return _read(self._client.get_job_info(name))
            except RuntimeError as error:
                if "status code 404" in str(error):
                    return None
                raise

        return self._ask(ask)

    def _ask(self, what: Callable[[], T]) -> T:
        return _patiently(what, self._settings.patience_s, "the cluster's job server")


def _patiently(what: Callable[[], T], patience_s: float, whom: str) -> T:
    """``what``, again and again while the server cannot be reached: a tunnel drops, a head starts again."""
    deadline, wait_s = time.monotonic() + patience_s, 1.0
    while True:
        try:
            return what()
        except (RuntimeError, OSError) as error:  # requests' errors are OSErrors
            if time.monotonic() + wait_s > deadline:
                raise DakterError(
                    f"{whom} does not answer ({error}); expected one at RAY_API_SERVER_ADDRESS or RAY_ADDRESS. Stages "
                    "that run go on; the same command attaches to them"
                ) from error
            log.warning("%s does not answer (%s); again in %g s", whom, error, wait_s)
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, 30.0)


def _read(job: Any) -> Submission:
    facts = job.metadata or {}
    return Submission(
        id=job.submission_id,
        stage=facts.get(_STAGE, ""),
        attempt=int(facts.get(_ATTEMPT, 0)),
        state=str(job.status.value),
        exit_status=job.driver_exit_code,
        settings=facts.get(_SETTINGS, ""),
        message=job.message or "no word of the reason",
    )


def _raise_for(ended: Submission) -> None:
    """Return if the stage is done; else raise what its own process would have raised."""
    where = f"{ended.stage}: {ended.id}"
    if ended.state == "STOPPED" or ended.exit_status == Stopped.exit_status:
        raise Stopped(f"{where} was stopped; finished work is kept, the same command resumes")
    if ended.state == "SUCCEEDED":
        return
    kind = {ConfigError.exit_status: ConfigError, GateError.exit_status: GateError}.get(
        ended.exit_status or 0, DakterError
    )
    raise kind(
        f"{where} ended with exit status {ended.exit_status}; its log is above, and by `ray job logs {ended.id}`"
    )


def _check_same(running: Submission, settings: str) -> None:
    if running.settings == settings:
        return
    there, here = (yaml.safe_load(storage.read_bytes(url)) for url in (running.settings, settings))
    different = "; ".join(config.differences(here, there))
    raise ConflictError(
        f"{running.stage}: {running.id} is running with other settings ({different}). Go back to those, wait for its "
        f"end, or stop it with `ray job stop {running.id}`"
    )


def put_settings(out: str, stage: str, settings: Config) -> str:
    """Write the settings of a stage for its process to read; returns the URL, which names their digest."""
    url = storage.join(out, "submissions", f"{stage}-{settings.digest()[:12]}.yaml")
    storage.put(url, settings.to_yaml().encode())
    return url


def _runtime_env(settings: SubmissionConfig) -> dict[str, Any]:
    """What a stage is started with: what the pipeline itself was submitted with, else the documented variables.

    A submitted pipeline adds no variable to its own: what nodes have of themselves (roles, say) stages have as well.
    Either way no secret is handed on.
    """
    submitted = _environment.submission()
    given = {"env_vars": _environment.environment()} if submitted is None else submitted
    own = {key: value for key, value in given.items() if not key.startswith("_")}
    variables = _environment.without_secrets(own.get("env_vars") or {})
    own["env_vars"] = {**variables, "RAY_JOB_STOP_WAIT_TIME_S": str(settings.stop_wait_s)}
    if settings.working_dir:
        own["working_dir"] = settings.working_dir
    return own


def _show_log(client: Any, name: str, skip: int, ended: threading.Event) -> None:
    """Copy the log of a submission, from character ``skip`` on, to standard error until it has ended."""
    shown = skip

    def show(text: str, position: int) -> int:
        """``text`` stands at ``position`` of the log; print what is new of it."""
        nonlocal shown
        end = position + len(text)
        if end > shown:
            sys.stderr.write(text[max(0, shown - position) :])
            sys.stderr.flush()
            shown = end
        return end

    async def tail() -> None:
        position = 0
        async for text in client.tail_job_logs(name):
            position = show(text, position)

    while not ended.is_set():
        try:
            asyncio.run(tail())
        except Exception as error:  # whatever breaks a connection; the log stays where it is
            log.debug("%s: the connection to its log broke (%s)", name, error)
        ended.wait(2.0)
    try:
        show(client.get_job_logs(name), 0)  # what the connection did not bring
    except (RuntimeError, OSError) as error:
        log.debug("%s: the end of its log cannot be read (%s)", name, error)
