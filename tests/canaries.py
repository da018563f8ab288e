"""Planted secrets, and the search for them in all that a job leaves."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from dakter import storage

# What a user may have in the environment of a job. moto accepts any credentials, so nothing fails for their sake.
CANARIES = {
    "AWS_SECRET_ACCESS_KEY": "canary-aws-secret-7f3a91c2",
    "AWS_SESSION_TOKEN": "canary-aws-session-51d0be47",
    "MLFLOW_TRACKING_PASSWORD": "canary-mlflow-password-c8e2",
    "MLFLOW_TRACKING_TOKEN": "canary-mlflow-token-90ab12",
}


def leaks(named: Mapping[str, bytes], planted: Mapping[str, str] = CANARIES) -> set[str]:
    """``<place>: <variable>`` of every planted value that stands in ``named``, place -> bytes."""
    return {
        f"{place}: {variable}"
        for place, data in named.items()
        for variable, canary in planted.items()
        if canary.encode() in data
    }


def files(folder: Path) -> dict[str, bytes]:
    """Every regular file below ``folder``; whoever writes there may still be at work."""
    found = {}
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            if path.is_file() and not path.is_symlink():
                found[str(path)] = path.read_bytes()
    return found


def objects(url: str) -> dict[str, bytes]:
    """Every object below ``url``."""
    return {name: storage.read_bytes(f"{url}/{name}") for name in storage.sizes(url)}
