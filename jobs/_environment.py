"""The variables that travel with a job: which do, and why no secret is among them.

Ray keeps the variables of a submission, and of a driver that joins, with the job: whoever may list jobs reads them, and
nodes write them into their logs. So what is secret stays where it is, and nodes have credentials of their own.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from typing import Any

from dakter.tracking_address import holds_password, uri_from_environment

log = logging.getLogger("dakter.jobs")

# What a process elsewhere needs of this one's environment to reach the same storage and tracking server.
FORWARDED = (
    "DAKTER_S3_TIMEOUT_S",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_CA_BUNDLE",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_PROFILE",
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "MLFLOW_TRACKING_URI",
)
_SECRET_WORDS = {"SECRET", "PASSWORD", "PGPASSWORD", "PASSPHRASE", "TOKEN"}
# Half of a pair does harm: botocore refuses a key id without its key instead of going on to the node's role.
_WITH_ITS_SECRET = {
    "AWS_ACCESS_KEY_ID": "AWS_SECRET_ACCESS_KEY",
    "MLFLOW_TRACKING_USERNAME": "MLFLOW_TRACKING_PASSWORD",
}


def submission() -> dict[str, Any] | None:
    """The runtime environment with which this process was submitted as a Ray job; None if it was not."""
    text = os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR")
    return dict(json.loads(text).get("runtime_env") or {}) if text else None


def submitted_variables() -> dict[str, str]:
    """The variables that came with the submission of this process."""
    return dict((submission() or {}).get("env_vars") or {})


def secrets_among(variables: Mapping[str, str]) -> list[str]:
    """Names of those variables that are secret by their name (``..._TOKEN``), or hold a URL with a password."""
    return sorted(name for name, value in variables.items() if _named_secret(name) or holds_password(value))


def _named_secret(name: str) -> bool:
    words = name.upper().split("_")
    return words[-1] != "FILE" and bool(_SECRET_WORDS & set(words))


def without_secrets(variables: Mapping[str, str]) -> dict[str, str]:
    """``variables`` without those that are secret, and without what is of no use alone."""
    gone = set(secrets_among(variables))
    gone |= {name for name, secret in _WITH_ITS_SECRET.items() if secret in gone}
    return {name: value for name, value in variables.items() if name not in gone}


def environment() -> dict[str, str]:
    """Variables of this process that workers and stages need and do not have by the submission; no secret among them.

    A variable given both with ``ray job submit`` and here would make Ray refuse, and print both values.
    """
    given = submitted_variables()
    return without_secrets({name: os.environ[name] for name in FORWARDED if name in os.environ and name not in given})


def check() -> None:
    """At the start of a job: name the secrets that came with its submission, and refuse an address with a password.

    Raises:
        ConfigError: MLFLOW_TRACKING_URI holds a password.
    """
    found = secrets_among(submitted_variables())
    if found:
        log.warning(
            "secrets came with the submission of this job: %s. Ray keeps them with the job, shows them to whoever may "
            "list jobs, and writes them into logs of its nodes: change them, and let nodes have a role or variables of "
            "their own. Stages that this job submits are not given them",
            ", ".join(found),
        )
    uri_from_environment()
