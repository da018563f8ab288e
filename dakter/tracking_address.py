"""Which MLflow address a run uses, and whether anybody answers there."""

from __future__ import annotations

import os
import urllib.error
import urllib.parse
import urllib.request

from dakter import storage
from dakter.errors import ConfigError, StorageError


def tracking_uri(given: str | None, out: str) -> str:
    """``given``, else MLFLOW_TRACKING_URI, else a SQLite database below a local ``out``.

    Raises:
        ConfigError: there is none, or MLFLOW_TRACKING_URI holds a password.
    """
    uri = given or uri_from_environment()
    if uri:
        return uri
    if storage.is_remote(out):
        raise ConfigError(
            f"tracking.uri is null, MLFLOW_TRACKING_URI is unset and out is {out}; a SQLite database needs a local "
            "folder: give --tracking.uri http://<mlflow server> (or sqlite:////abs/mlflow.db)"
        )
    return f"sqlite:///{storage.local_path(out).absolute()}/mlflow.db"


def uri_from_environment() -> str | None:
    """MLFLOW_TRACKING_URI; ConfigError if it holds a password, which would travel with every job."""
    try:
        return check_no_password(os.environ.get("MLFLOW_TRACKING_URI"))
    except ValueError as error:
        raise ConfigError(f"MLFLOW_TRACKING_URI holds a password; expected {error}") from error


def holds_password(text: str) -> bool:
    """Whether ``text`` is a URL with a password, before the host or as a parameter (``?password=...``)."""
    try:
        parts = urllib.parse.urlsplit(text)
        return parts.password is not None or bool(parts.scheme and "password" in urllib.parse.parse_qs(parts.query))
    except ValueError:  # not a URL
        return False


def check_no_password(uri: str | None) -> str | None:
    """``uri`` itself; ValueError if it holds a password, since settings are written into records and reports."""
    if uri and holds_password(uri):
        raise ValueError(
            "an address without a password: use MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, PGPASSWORD or "
            "~/.pgpass"
        )
    return uri


def _public(uri: str) -> str:
    """``uri`` without user and password, for messages."""
    parts = urllib.parse.urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def check_server(uri: str) -> None:
    """MLflow's client retries for minutes before it says that nobody is there; this says so in seconds."""
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=15):
            return
    except urllib.error.HTTPError:
        return  # it answers; an account may be needed, which the client brings
    except (OSError, ValueError) as error:
        raise StorageError(
            f"tracking.uri {_public(uri)}: no MLflow server answers ({error}); start it, or correct tracking.uri or "
            "MLFLOW_TRACKING_URI"
        ) from error
