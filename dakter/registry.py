"""Versions of the registered model, their aliases, and the lock under which a promotion moves them.

Works on any MLflow client it is given and imports none: ``dakter.tracking`` makes it.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from dakter.errors import ConflictError

log = logging.getLogger("dakter.registry")

PACKAGE_TAG = "dakter.package"


@dataclass(frozen=True)
class Version:
    """One registered version of the model: ``number`` in the registry, the run that logged it, its tags."""

    name: str
    number: str
    run_id: str
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Digest of what was packaged; equal digests are the same version."""
        return self.tags.get(PACKAGE_TAG, "")

    @property
    def uri(self) -> str:
        return f"models:/{self.name}/{self.number}"


class Registry:
    """The registered model ``name`` behind an MLflow client.

    Args:
        client: an ``MlflowClient``.
        name: the registered model.
        lock_wait_s: how long ``lock`` waits for its holder.
        lock_stale_min: age after which a lock counts as left behind.
    """

    def __init__(self, client: Any, name: str, *, lock_wait_s: float, lock_stale_min: float):
        self._client, self.name = client, name
        self._wait_s, self._stale_min = lock_wait_s, lock_stale_min

    def find(self, digest: str) -> Version | None:
        """The newest version that packages ``digest``, or None."""
        found = [version for version in self.versions() if version.digest == digest]
        return max(found, key=lambda version: int(version.number)) if found else None

    def versions(self) -> list[Version]:
        """Every version of the model, newest first; empty if none was registered."""
        found = self._client.search_model_versions(f"name='{self.name}'")
        return sorted((version_of(item) for item in found), key=lambda version: -int(version.number))

    def alias(self, alias: str) -> Version | None:
        """The version behind ``champion``, ``previous`` or ``challenger``; None if unset."""
        try:
            return version_of(self._client.get_model_version_by_alias(self.name, alias))
        except Exception as error:
            # A missing alias is told as an invalid parameter, a missing model as a missing resource.
            if code(error) in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise

    def set_alias(self, alias: str, version: Version) -> None:
        """Point ``alias`` at ``version``."""
        self._client.set_registered_model_alias(version.name, alias, version.number)

    def tag_version(self, version: Version, tags: Mapping[str, str | None]) -> None:
        """Set tags of a version; None removes one."""
        standing = self._client.get_model_version(version.name, version.number).tags
        for key, value in tags.items():
            if value is not None:
                self._client.set_model_version_tag(version.name, version.number, key, value)
            elif key in standing:
                self._client.delete_model_version_tag(version.name, version.number, key)

    @contextmanager
    def lock(self, owner: str) -> Iterator[Callable[[], None]]:
        """Hold the model's promotion lock; yields a function that raises ConflictError if it was lost meanwhile.

        MLflow has no compare-and-set on aliases, yet a registered model's name is a primary key in every backend:
        of several who create ``<model>.lock`` exactly one succeeds, on any number of machines. A lock older than
        ``lock_stale_min`` is taken over, by one taker at a time (``<model>.lock.takeover``); its slow former owner
        is refused by the yielded check, to be called before every move.

        Raises:
            ConflictError: somebody else holds it for longer than ``lock_wait_s``.
        """
        name, deadline = f"{self.name}.lock", time.monotonic() + self._wait_s
        token = f"{owner} {os.urandom(8).hex()}"
        while not self._take(name, token):
            if time.monotonic() >= deadline:
                holder = self._holder(name) or ("unknown", time.time())
                raise ConflictError(
                    f"{self.name}: {holder[0]!r} is promoting since {_utc(holder[1])}; run this command "
                    f"again when it is done. If that process is gone, the lock is taken over when it is "
                    f"{self._stale_min:g} minutes old; to go on now, delete the registered model {name} "
                    f"(and {name}.takeover if it is there)"
                )
            time.sleep(min(1.0, max(0.05, deadline - time.monotonic())))

        def check() -> None:
            holder = self._holder(name)
            if holder is None or holder[0] != token:
                raise ConflictError(
                    f"{self.name}: the promotion lock was taken over by "
                    f"{holder[0] if holder else 'nobody'} after {self._stale_min:g} minutes; nothing "
                    "further was moved; run the same command again"
                )

        try:
            yield check
        finally:
            last = self._holder(name)
            if last is not None and last[0] == token:
                self._client.delete_registered_model(name)

    def _take(self, name: str, token: str) -> bool:
        tags = {"dakter.owner": token, "dakter.since": repr(time.time())}
        if self.create(name, tags):
            return True
        holder = self._holder(name)
        if holder is None or time.time() - holder[1] < 60 * self._stale_min:
            return False
        if not self.create(f"{name}.takeover", tags):
            return False
        try:
            if self._holder(name) == holder:
                log.warning("taking over the lock %s of %s, held since %s", name, holder[0], _utc(holder[1]))
                self._client.delete_registered_model(name)
            return self.create(name, tags)
        finally:
            self._client.delete_registered_model(f"{name}.takeover")

    def _holder(self, name: str) -> tuple[str, float] | None:
        try:
            tags = self._client.get_registered_model(name).tags
        except Exception as error:
            if code(error) == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        return tags.get("dakter.owner", "unknown"), float(tags.get("dakter.since", time.time()))

    def create(self, name: str, tags: Mapping[str, str]) -> bool:
        """Whether it was created now; False if it stood already."""
        try:
            self._client.create_registered_model(name, tags=dict(tags))
        except Exception as error:
            if code(error) == "RESOURCE_ALREADY_EXISTS":
                return False
            raise
        return True


def version_of(item: Any) -> Version:
    return Version(item.name, str(item.version), item.run_id, dict(item.tags))


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def code(error: Exception) -> str:
    """MLflow's code of one of its own errors, e.g. ``"RESOURCE_DOES_NOT_EXIST"``; empty for any other error."""
    return str(getattr(error, "error_code", ""))
