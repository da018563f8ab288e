"""The very command of mlflow.yaml's container, run here: migration, then the server, artifacts through it to S3."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from aws_stacks import MLFLOW, Roles, refused, template
from s3_recorder import Asked, Request

from dakter.storage import read_json, to_json_bytes
from dakter.tracking import Tracker, TrackingConfig
from jobs.suites._raylets import free_port

ROOT = Path(__file__).parents[2]
HOST = "mlflow.dakter.internal"
POSTGRES = 'uri="postgresql+psycopg2://mlflow:$DATABASE_PASSWORD@$DATABASE_HOST:5432/mlflow?sslmode=require"'


def command() -> str:
    """The shell script of the container."""
    server = template(MLFLOW)["Resources"]["Task"]["Properties"]["ContainerDefinitions"][0]
    assert server["Command"][:2] == ["sh", "-ec"]
    text = str(server["Command"][2])
    assert POSTGRES in text
    return text


@contextmanager
def started(script: str, port: int, bucket: str, **more: str) -> Iterator[str]:
    """The server's URL once it answers; its process group is ended afterwards."""
    definition = template(MLFLOW)["Resources"]["Task"]["Properties"]["ContainerDefinitions"][0]
    given = {entry["Name"]: entry["Value"] for entry in definition["Environment"]}
    assert set(given) == {
        "DATABASE_HOST", "ARTIFACTS", "ALLOWED_HOSTS", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "AWS_DEFAULT_REGION",
    }  # fmt: skip
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "ARTIFACTS": f"{bucket}/mlflow",
        "ALLOWED_HOSTS": given["ALLOWED_HOSTS"]["Fn::Sub"].replace("${BaseStack}", "dakter").replace("5000", str(port)),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": given["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"],
        **more,
    }
    assert "--host 0.0.0.0 --port 5000" in script
    script = script.replace("--host 0.0.0.0 --port 5000", f"--host 127.0.0.1 --port {port}")
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            ["sh", "-ec", script], env=environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            deadline = time.monotonic() + 120
            while True:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise AssertionError(f"no server: {log.read()[-3000:]}")
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)


def status(url: str, host: str) -> int:
    request = urllib.request.Request(f"{url}/api/2.0/mlflow/experiments/get?experiment_id=0", headers={"Host": host})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def trials_at_once(url: str) -> None:
    """Several trackers meet a server nobody has used yet: each keeps its parent and its trial, in one experiment."""
    trial = (
        "import sys\n"
        "from dakter.tracking import Tracker, TrackingConfig\n"
        "sys.stdin.readline()\n"
        "tracker = Tracker.open(TrackingConfig(uri=sys.argv[1]), '/nowhere')\n"
        "parent = tracker.run('sweep-' + sys.argv[2], name='distill')\n"
        "run = tracker.run('trial-' + sys.argv[2], name='trial', parent=parent.id)\n"
        "run.params({'lr': sys.argv[2]})\n"
        "for step in range(20): run.metrics({'loss': 1 / (1 + step)}, step=step)\n"
        "run.document({'trial': sys.argv[2]}, 'trial.json')\n"
        "run.end(); parent.end()\n"
    )
    words = [sys.executable, "-c", trial, url]
    trials = [subprocess.Popen([*words, str(number)], stdin=subprocess.PIPE, cwd=ROOT) for number in range(4)]
    for one in trials:
        assert one.stdin is not None
        one.stdin.write(b"\n")
        one.stdin.flush()
    assert [one.wait(120) for one in trials] == [0] * 4
    tracker = Tracker.open(TrackingConfig(uri=url), "/nowhere")
    for number in range(4):
        run = tracker.run(f"trial-{number}", name="trial")
        assert run.read("trial.json") == to_json_bytes({"trial": str(number)})
        found = tracker._client.get_run(run.id).data
        assert found.params == {"lr": str(number)}
        assert len(tracker._client.get_metric_history(run.id, "loss")) == 20
        parent = tracker._client.get_run(found.tags["mlflow.parentRunId"]).data
        assert parent.tags["dakter.key"] == f"sweep-{number}"


def whole_job(url: str, out: Path) -> None:
    """Every stage in one command, two trials at a time, by a client without any credential."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "MLFLOW_", "RAY_"))}
    command = [sys.executable, "jobs/pipeline.py", "--preset", "tiny", "--out", str(out), "--tracking.uri", url]
    command += ["--ray.trial_workers", "2"]
    done = subprocess.run(command, cwd=ROOT, env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    arms = read_json(str(out / "sweep/sweep.json"))["arms"].values()
    made = sum(len(arm["search"]["trials"]) + len(arm["students"]) for arm in arms)
    client = Tracker.open(TrackingConfig(uri=url), "/nowhere")._client
    runs = client.search_runs([one.experiment_id for one in client.search_experiments()], max_results=1000)
    (parent,) = [run.info.run_id for run in runs if run.data.tags.get("dakter.stage") == "distill"]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent]
    assert len(children) == made
    assert {run.info.status for run in children} == {"FINISHED"}


def use(url: str, port: int, folder: Path) -> None:
    """Log a run with an artifact, without any S3 credential, and read both back."""
    (folder / "note.txt").write_text("a note")
    client = (
        "import mlflow, sys\n"
        "mlflow.set_tracking_uri(sys.argv[1])\n"
        "with mlflow.start_run() as run:\n"
        "    mlflow.log_metric('miou', 0.5)\n"
        "    mlflow.log_artifact(sys.argv[2])\n"
        "found = mlflow.get_run(run.info.run_id)\n"
        "assert found.data.metrics == {'miou': 0.5}\n"
        "where = found.info.artifact_uri\n"
        "listed = mlflow.MlflowClient().list_artifacts(run.info.run_id)\n"
        "assert [entry.path for entry in listed] == ['note.txt'], listed\n"
        "print(where, mlflow.artifacts.load_text(where + '/note.txt'))\n"
    )
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "MLFLOW_"))}
    words = [sys.executable, "-c", client, url, str(folder / "note.txt")]
    done = subprocess.run(words, env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    last = done.stdout.splitlines()[-1]
    assert last.startswith("mlflow-artifacts:/")
    assert last.endswith(" a note")
    assert [status(url, name) for name in (f"{HOST}:{port}", f"localhost:{port}")] == [200, 200]
    assert status(url, "attacker.example") == 403


def check_requests(asked: list[Request], roles: Roles, bucket: str) -> None:
    """What the server asked of S3 is allowed to it, and was asked for at all."""
    assert {request.action for request in asked} >= {"s3:PutObject", "s3:GetObject", "s3:ListBucket"}
    assert refused(asked, roles.on("ServerRole", bucket.removeprefix("s3://"))) == set()


def test_the_command_of_the_container_serves(roles: Roles, s3_bucket: str, s3_requests: Asked, tmp_path: Path) -> None:
    port = free_port()
    with started(command().replace(POSTGRES, f'uri="sqlite:///{tmp_path}/mlflow.db"'), port, s3_bucket) as url:
        trials_at_once(url)
        use(url, port, tmp_path)
    check_requests(s3_requests(), roles, s3_bucket)


@pytest.mark.slow
def test_and_on_postgresql_over_tls(roles: Roles, s3_bucket: str, s3_requests: Asked, tmp_path: Path) -> None:
    with postgres() as (port_of_database, password):
        port = free_port()
        script = command().replace("$DATABASE_HOST:5432", f"$DATABASE_HOST:{port_of_database}")
        more = {"DATABASE_HOST": "127.0.0.1", "DATABASE_PASSWORD": password}
        with started(script, port, s3_bucket, **more) as url:
            trials_at_once(url)
            use(url, port, tmp_path)
            whole_job(url, tmp_path / "run")
        with started(script, port, s3_bucket, **more) as url:  # the next task migrates a database that is migrated
            assert status(url, f"localhost:{port}") == 200
    check_requests(s3_requests(), roles, s3_bucket)


@contextmanager
def postgres() -> Iterator[tuple[int, str]]:
    """A PostgreSQL of its own with TLS and the user and database of the template: its port and the password."""
    import shutil

    if not (shutil.which("initdb") and shutil.which("pg_ctl") and shutil.which("openssl")):
        pytest.skip("needs Debian's postgresql (initdb, pg_ctl on PATH) and openssl")
    user = "postgres" if os.geteuid() == 0 else None  # PostgreSQL refuses to run as root
    password, port = secrets.token_urlsafe(16).replace("-", "x").replace("_", "x"), free_port()
    with tempfile.TemporaryDirectory(prefix="dk", dir="/tmp") as folder:
        place = Path(folder)
        (place / "password").write_text(password)
        if user:
            for path in (place, place / "password"):
                shutil.chown(path, user)

        def run(*words: str) -> None:
            done = subprocess.run(words, cwd=folder, user=user, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr

        data = f"{folder}/data"
        run("initdb", "-D", data, "-U", "mlflow", "--pwfile", f"{folder}/password", "-A", "scram-sha-256")
        certificate = ("-subj", "/CN=localhost", "-out", f"{data}/server.crt", "-keyout", f"{data}/server.key")
        run("openssl", "req", "-new", "-x509", "-days", "2", "-nodes", *certificate)
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c ssl=on"
        run("pg_ctl", "-D", data, "-w", "-o", options, "-l", f"{folder}/log", "start")
        try:
            make = (
                "import psycopg2, sys; link = psycopg2.connect(sys.argv[1]); link.autocommit = True\n"
                "link.cursor().execute('CREATE DATABASE mlflow')\n"
            )
            target = f"host=127.0.0.1 port={port} user=mlflow password={password} dbname=postgres sslmode=require"
            subprocess.run([sys.executable, "-c", make, target], check=True)
            yield port, password
        finally:
            run("pg_ctl", "-D", data, "-m", "immediate", "stop")
