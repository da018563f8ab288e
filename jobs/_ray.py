"""The Ray runtime of a job: the cluster it was submitted to, or one of its own on loopback."""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from pydantic import model_validator

from dakter.config import Config, setting
from dakter.errors import Stopped, StorageError
from jobs._context import current
from jobs._environment import environment
from jobs._logs import relay_workers

log = logging.getLogger("dakter.jobs.ray")


_COUNTED = ("CPU", "GPU")  # resources that errors tell of


class RayConfig(Config):
    """How a job uses Ray. On a cluster (RAY_ADDRESS set, as in a submitted job) only the per-worker needs count."""

    num_cpus: int | None = setting(
        None, "CPUs that a Ray started by the job itself offers; null: those of the machine", ge=1
    )
    num_gpus: int | None = setting(
        None, "GPUs that a Ray started by the job itself offers; null: those of the machine", ge=0
    )
    train_workers: int = setting(1, "workers of diffusion training; they share the rows of train.batch_size", ge=1)
    train_workers_min: int | None = setting(
        None, "fewest of them that training goes on with while nodes come and go; null: exactly train_workers", ge=1
    )
    train_cpus: int = setting(2, "CPUs, and torch threads, of one of them", ge=1)
    train_gpus: float = setting(0.0, "GPUs of one of them", ge=0)
    generate_workers: int = setting(2, "sampling actors", ge=1)
    generate_cpus: int = setting(1, "CPUs, and torch threads, of one of them; part of the corpus's identity", ge=1)
    generate_gpus: float = setting(0.0, "GPUs of one of them", ge=0)
    trial_workers: int = setting(2, "trials of the sweep, or final students, at a time", ge=1)
    trial_cpus: int = setting(1, "CPUs, and torch threads, of one of them", ge=1)
    trial_gpus: float = setting(0.0, "GPUs of one of them; a share packs several on one GPU", ge=0)
    max_failures: int = setting(3, "lost training workers that are made good from the last checkpoint", ge=0)
    start_timeout_s: int = setting(
        600,
        "how long to wait for the resources asked for, at the start or after a loss, before giving up",
        unit="s",
        ge=1,
    )

    @model_validator(mode="after")
    def _fewest_within(self) -> RayConfig:
        if self.train_workers_min is not None and self.train_workers_min > self.train_workers:
            raise ValueError(
                f"train_workers_min is {self.train_workers_min}; expected at most train_workers, {self.train_workers}"
            )
        return self

    @property
    def train_fewest(self) -> int:
        """Workers without which training waits."""
        return self.train_workers_min or self.train_workers

    @property
    def train_needs(self) -> dict[str, float]:
        """Resources of one training worker."""
        return _needs(self.train_cpus, self.train_gpus)

    @property
    def generate_needs(self) -> dict[str, float]:
        """Resources of one sampling actor."""
        return _needs(self.generate_cpus, self.generate_gpus)

    @property
    def trial_needs(self) -> dict[str, float]:
        """Resources of one trial of the sweep, or of one final student."""
        return _needs(self.trial_cpus, self.trial_gpus)


def _needs(cpus: int, gpus: float) -> dict[str, float]:
    return {"CPU": float(cpus), **({"GPU": gpus} if gpus else {})}


@contextmanager
def session(config: RayConfig) -> Iterator[Any]:
    """Yield the ``ray`` module, connected.

    Inside a submitted job, or wherever RAY_ADDRESS is set, this joins that cluster; else it starts a Ray bound to
    loopback, guarded by a one-time token, and stops it at the end. Nested use shares the outer session.
    """
    own = not os.environ.get("RAY_ADDRESS")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # the hook hangs drivers where workers lack uv
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if own:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # Ray turns 127.0.0.1 into the machine's outer address, on Linux, and then listens there; this is its own
        # switch for "a single machine", under which every one of its ports is on loopback (seen with ss -ltnp).
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        if "RAY_AUTH_MODE" not in os.environ:  # an explicit choice, so that Ray writes no token file into HOME
            os.environ["RAY_AUTH_MODE"] = "token"
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"  # relative paths mean the same in the driver and in a trial
    import ray

    if ray.is_initialized():
        yield ray
        return
    if own:
        from ray._private import ray_constants

        ray_constants.ENABLE_RAY_CLUSTER = False  # Ray reads its switch once, when it is first imported
        cpus = config.num_cpus or max(
            os.cpu_count() or 1,
            config.train_workers * config.train_cpus,
            config.generate_workers * config.generate_cpus,
            config.trial_workers * config.trial_cpus,
        )
        # Bookkeeping, not pinning: two spare slots keep Ray Data from waiting for CPUs that its own actors hold.
        ray.init(
            _node_ip_address="127.0.0.1",
            include_dashboard=True,
            num_cpus=cpus + 2,
            num_gpus=config.num_gpus,
            log_to_driver=True,
            configure_logging=False,
        )
    else:
        more = environment()
        ray.init(runtime_env={"env_vars": more} if more else None, log_to_driver=True)
    if current().log_format == "json":
        relay_workers()
    log.info("Ray %s: %s", ray.__version__, "on loopback, started by this job" if own else "joined the cluster")
    try:
        yield ray
    finally:
        if own:
            ray.shutdown()


class ResourceDeadline:
    """Ends a job that waits too long for resources: Ray itself waits for ever for a GPU that will not come.

    Args:
        needs: of one worker; ``count`` of them must fit.
        timeout_s: how long nothing may be at work.
        now: a clock, in seconds.
    """

    def __init__(
        self,
        ray: Any,
        needs: Mapping[str, float],
        count: int,
        timeout_s: float,
        now: Callable[[], float] = time.monotonic,
    ):
        self._ray, self._needs, self._count, self._timeout_s, self._now = ray, dict(needs), count, timeout_s, now
        self._since, self._told = now(), False

    def fits(self) -> bool:
        """Whether the cluster, busy or not, is large enough; nodes that are about to leave do not count."""
        return self._capacity() >= self._count

    def check(self, at_work: bool) -> None:
        """Ask often, with whether any worker shows that it has what it needs.

        Raises:
            StorageError: none for ``timeout_s``; says what was asked for and what the cluster has.
        """
        if at_work:
            self._since, self._told = self._now(), False
            return
        waited_s = self._now() - self._since
        if waited_s > self._timeout_s:
            raise StorageError(
                f"asked for {self._count} x {self._needs}, not there within {self._timeout_s:g} s; the cluster has "
                f"{self.has()}; ask for less (ray.* settings), add nodes, or raise ray.start_timeout_s"
            )
        if not self._told and waited_s > min(30.0, self._timeout_s / 2):
            self._told = True
            log.warning("waiting for %d x %s; the cluster has %s", self._count, self._needs, self.has())

    def _nodes(self) -> list[Mapping[str, float]]:
        leaving = draining(self._ray)
        return [node["Resources"] for node in self._ray.nodes() if node["Alive"] and node["NodeID"] not in leaving]

    def _capacity(self) -> int:
        asked = [(key, amount) for key, amount in self._needs.items() if amount]
        return sum(min(int(node.get(key, 0) / amount + 1e-9) for key, amount in asked) for node in self._nodes())

    def has(self) -> str:
        """What the cluster has, in words: all of it, and what of it nobody holds now (another job may)."""
        nodes, free = self._nodes(), self._ray.available_resources()
        totals = {key: sum(node.get(key, 0.0) for node in nodes) for key in _COUNTED}
        return (
            f"{totals} on {len(nodes)} node(s), room for {self._capacity()}; free of it now: "
            f"{ {key: free.get(key, 0.0) for key in _COUNTED} }"
        )


def beside_driver(ray: Any, kind: type, *arguments: Any) -> Any:
    """A ``kind(*arguments)`` as an actor without CPUs on the driver's own node, where no lost worker takes it along."""
    # Not soft: Ray 2.60 puts an actor that needs no resource anywhere then. Without its node there is no driver either.
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )
    remote = ray.remote(kind).options(num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here)
    return remote.remote(*arguments)


def wait_for_resources(
    ray: Any,
    needs: Mapping[str, float],
    count: int,
    *,
    timeout_s: float,
    stop: Callable[[], bool],
    wish: int | None = None,
) -> None:
    """Wait until ``count`` times ``needs`` fits the cluster, telling an autoscaler what is wanted.

    Args:
        wish: how many an autoscaler is told of; None: ``count``.

    Raises:
        StorageError: not within ``timeout_s``; says what was asked for and what the cluster has.
        Stopped: a stop was asked for while waiting.
    """
    deadline = ResourceDeadline(ray, needs, count, timeout_s)
    if deadline.fits():
        return
    log.info("waiting for %d x %s, which the cluster does not have yet", count, dict(needs))
    with suppress(Exception):  # a cluster without an autoscaler refuses the hint, and waiting goes on
        ray.autoscaler.sdk.request_resources(bundles=[dict(needs)] * (wish or count))
    try:
        while not deadline.fits():
            if stop():
                raise Stopped("stopped as asked while waiting for resources; the same command resumes")
            deadline.check(at_work=False)
            time.sleep(1.0)
    finally:
        with suppress(Exception):  # the request outlives its job: nodes would be kept, and paid, for nobody
            ray.autoscaler.sdk.request_resources(bundles=[])


def draining(ray: Any) -> dict[str, float]:
    """Nodes that were told to leave (``ray drain-node``, a spot notice): node id -> when, in Unix seconds.

    Ray has no public call for it; this is the one that its own training library goes by.
    """
    try:
        told = ray._private.state.state.get_draining_nodes()
    except (AttributeError, ray.exceptions.RayError):  # another release of Ray: as if it told nothing
        return {}
    return {node: at_ms / 1000 if at_ms > 0 else float("inf") for node, at_ms in told.items()}
