"""The disturber of the chaos suite: a driver at work, a schedule of faults, and an account of what was delivered."""

from __future__ import annotations

import json
import logging
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from dakter.corpus.layout import Layout
from dakter.errors import DakterError, Stopped, StorageError
from jobs._cli import Stop
from jobs.suites._chaos_sampler import Trace, traces
from jobs.suites._fault_proxy import KINDS, Proxy
from jobs.suites._raylets import Cluster, Node

log = logging.getLogger("dakter.jobs.chaos")
_ROOT = Path(__file__).parents[2]
FULL_DISK_BYTES = 2 << 20  # size of the disk that fills up
# Share of the work by which all events have come; a disk fills earlier, so that work is left that feels it.
_LAST, _LAST_DISK = 0.9, 0.5
EVENTS = ("actor_kill", "node_loss", "driver_kill", "second_driver", "full_disk", "drain", "outage")


@dataclass(frozen=True)
class Scale:
    """How large a run is, and how much of each fault it suffers.

    Attributes:
        shards: of ``micro_batches`` micro-batches of 4 pairs, each of which takes ``delay_s``.
        nodes, workers: raylets beside the head, and sampling actors.
        events: kind of ``EVENTS`` -> how often, spread over the run by share of the work done.
        store_faults: of each kind of the proxy's.
        store_rate: share of requests that fail.
        full_s, outage_s, drain_s, twin_s: how long a disk is full, the store refuses everything, a node that is to
            leave stays, a second driver works.
        attempts: starts of the driver that may fail in a row without any shard more.
    """

    shards: int
    micro_batches: int
    delay_s: float
    nodes: int
    workers: int
    events: dict[str, int]
    store_faults: int
    store_rate: float
    full_s: float
    outage_s: float
    drain_s: int
    twin_s: float
    attempts: int = 5


@dataclass
class Account:
    """What happened.

    Attributes:
        delivered: events that were carried out, by kind.
        lost_actors: sampling actors that died by kills, lost or drained nodes, and drivers: each may cost a shard.
        exits: exit status of each start of the driver (-9: killed), and of second drivers (``twin:4``).
        set_aside: shards other than the poisoned one that were ever set aside -> the error.
        drained: node -> time of its notice by the wall clock (Unix seconds).
        poison_traceback: as it stood in ``failed/`` of the poisoned shard.
        disk_skipped: why no disk was filled.
    """

    delivered: Counter[str] = field(default_factory=Counter)
    lost_actors: int = 0
    exits: list[str] = field(default_factory=list)
    set_aside: dict[int, str] = field(default_factory=dict)
    drained: dict[str, float] = field(default_factory=dict)
    poison_traceback: str = ""
    disk_skipped: str | None = None


class Disturber:
    """Runs one generation through everything of a ``Scale``; see ``run``."""

    def __init__(self, scale: Scale, cluster: Cluster, proxy: Proxy, corpus: str, work: Path, seed: int):
        self._scale, self._cluster, self._proxy, self._url, self._work = scale, cluster, proxy, corpus, work
        self._random = random.Random(seed)
        self._poisoned = self._random.randrange(scale.shards)
        self._mark, self._traces = work / "poison", work / "traces"
        self._traces.mkdir()
        self._mark.touch()
        self._due = sorted(
            ((_LAST if kind != "full_disk" else _LAST_DISK) * (i + self._random.random()) / count, kind)
            for kind, count in scale.events.items()
            for i in range(count)
        )
        self._later: list[tuple[float, Callable[[], None]]] = []
        self._driver: subprocess.Popen | None = None
        self._twin: subprocess.Popen | None = None
        self._full: str | None = None  # name of the node whose disk is full
        self.account = Account()

    def run(self, stop: Stop) -> None:
        """Until the driver says that the corpus is whole.

        Raises:
            DakterError: it failed again and again without any shard more.
            Stopped: as asked.
        """
        self._proxy.change(rate=self._scale.store_rate, left=dict.fromkeys(KINDS, self._scale.store_faults))
        best, failures = -1, 0
        try:
            while True:
                if stop():
                    raise Stopped("stopped as asked; a chaos run starts anew")
                self._act()
                if self._driver is None:
                    self._driver = self._start("main", self._scale.workers)
                if (status := self._driver.poll()) is not None:
                    self._driver = None
                    self.account.exits.append(str(status))
                    log.info("chaos: the driver ended with status %d", status)
                    if status == 0 and self._pending() == 0:
                        return
                    committed = self._after_exit()
                    failures = 0 if committed > best else failures + 1
                    best = max(best, committed)
                    if failures > self._scale.attempts:
                        raise DakterError(
                            f"{self._url}: {failures} starts in a row brought no shard beyond {best}; see {self._work}"
                        )
                self._end_twin()
                time.sleep(0.2)
        finally:
            for process in (self._driver, self._twin):
                if process is not None:
                    _kill_group(process)

    def progress(self) -> float:
        """Share of the shards that were computed at least once."""
        per_shard = 4 * self._scale.micro_batches
        return len({trace.first // per_shard for trace in traces(self._traces)}) / self._scale.shards

    def said(self, words: str) -> int:
        """How many lines of the drivers' logs, to which those of their workers go, hold ``words``."""
        logs = [self._work / f"{name}.log" for name in ("main", "twin")]
        texts = [path.read_text(errors="replace") for path in logs if path.exists()]
        return sum(words in line for text in texts for line in text.splitlines())

    def _pending(self) -> int:
        return len(self._due) + len(self._later) + (self._twin is not None)

    def _act(self) -> None:
        """Do what is due by the clock and by the share of work done; what finds no victim is tried again."""
        for item in [item for item in self._later if item[0] <= time.monotonic()]:
            self._later.remove(item)
            item[1]()
        share = self.progress()
        if share > 0.7:  # all of them must be delivered before the end
            self._proxy.change(rate=max(self._scale.store_rate, 0.25))
        for event in [event for event in self._due if event[0] <= share]:
            if getattr(self, f"_{event[1]}")():
                self._due.remove(event)
                self.account.delivered[event[1]] += 1
                log.info("chaos: %s at %.0f %% (%d to come)", event[1], 100 * share, len(self._due))

    def _soon(self, after_s: float, what: Callable[[], None]) -> None:
        self._later.append((time.monotonic() + after_s, what))

    # Each event returns whether it found something to disturb.

    def _actor_kill(self) -> bool:
        pids = [pid for node in self._cluster.nodes.values() for pid in node.actors()]
        if not pids:
            return False
        os.kill(self._random.choice(sorted(pids)), signal.SIGKILL)
        self.account.lost_actors += 1
        return True

    def _node_loss(self) -> bool:
        node = self._victim()
        if node is None:
            return False
        self._lose(node)
        return True

    def _lose(self, node: Node) -> None:
        size = FULL_DISK_BYTES if node.mounted else None
        self.account.lost_actors += self._cluster.lose(node)
        self._cluster.add(num_cpus=node.num_cpus, disk_bytes=size, wait=False)

    def _driver_kill(self) -> bool:
        actors = sum(len(node.actors()) for node in self._cluster.nodes.values())
        if self._driver is None or not actors:
            return False
        _kill_group(self._driver)
        self.account.lost_actors += actors
        return True

    def _second_driver(self) -> bool:
        if self._twin is not None or self._driver is None:
            return False
        self._twin = self._start("twin", 1)
        self._watch_twin(len(self._by_twin()))
        return True

    def _watch_twin(self, before: int) -> None:
        """Let it work for ``twin_s`` from its first micro-batch on, then ask it to stop."""
        if self._twin is None:  # ended by itself
            return
        if len(self._by_twin()) > before:
            self._soon(self._scale.twin_s, self._stop_twin)
        else:
            self._soon(0.5, lambda: self._watch_twin(before))

    def _by_twin(self) -> list[Trace]:
        return [trace for trace in traces(self._traces) if trace.driver == "twin"]

    def _stop_twin(self) -> None:
        if self._twin is not None and self._twin.poll() is None:
            self._twin.send_signal(signal.SIGTERM)

    def _end_twin(self) -> None:
        if self._twin is not None and (status := self._twin.poll()) is not None:
            self._twin = None
            self.account.exits.append(f"twin:{status}")

    def _full_disk(self) -> bool:
        nodes = [node for node in self._cluster.nodes.values() if node.mounted]
        if not nodes:
            self.account.disk_skipped = "no right to mount a small disk"
            self.account.delivered["full_disk"] -= 1
            return True
        busy = [node for node in nodes if node in self._busy()]
        if not busy:
            return False
        filler = busy[0].disk / "filler"
        with suppress(OSError), open(filler, "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        felt = self.said("No space left")
        self._full = busy[0].name
        deadline = time.monotonic() + self._scale.full_s + 120
        self._soon(self._scale.full_s, lambda: self._free(filler, felt, deadline))
        return True

    def _free(self, filler: Path, felt: int, deadline: float) -> None:
        """Make room again, once a worker has felt that there is none."""
        if self.said("No space left") > felt or time.monotonic() > deadline:
            filler.unlink(missing_ok=True)
            self._full = None
        else:
            self._soon(1.0, lambda: self._free(filler, felt, deadline))

    def _drain(self) -> bool:
        node = self._victim()
        if node is None or node.node_id() is None:
            return False
        notice = self._cluster.drain(node, self._scale.drain_s)
        self.account.drained[node.name] = math.inf  # until the notice is given
        self._soon(0.5, lambda: self._drained(node, notice))
        return True

    def _drained(self, node: Node, notice: subprocess.Popen) -> None:
        """Note when the notice was given, and take the node away at its deadline."""
        if notice.poll() is None:
            self._soon(0.5, lambda: self._drained(node, notice))
            return
        if notice.returncode:
            raise StorageError(f"ray drain-node {node.name} ended with status {notice.returncode}")
        self.account.drained[node.name] = time.time()
        self._soon(self._scale.drain_s, lambda: self._lose(node) if node.name in self._cluster.nodes else None)

    def _outage(self) -> bool:
        kind = ("forbidden", "slow_down", "reset_before")[self.account.delivered["outage"] % 3]
        self._proxy.change(outage=kind)
        self._soon(self._scale.outage_s, self._end_outage)
        return True

    def _end_outage(self) -> None:
        self._proxy.change(outage=None)

    def _victim(self) -> Node | None:
        busy = self._busy()
        return self._random.choice(busy) if busy else None

    def _busy(self) -> list[Node]:
        """Nodes with actors on them that suffer nothing yet: no notice to leave, no full disk."""
        spoken_for = {*self.account.drained, self._full}
        return [node for node in self._cluster.nodes.values() if node.actors() and node.name not in spoken_for]

    def _after_exit(self) -> int:
        """Look, beside the proxy, at what was set aside; once only the poison is left, lift it."""
        layout = Layout.open(self._url)
        committed = set(layout.committed())
        for shard in set(layout.failed()) - committed:
            record = layout.read_json(layout.failed_key(shard))
            if shard != self._poisoned:
                self.account.set_aside[shard] = str(record["error"])
            elif len(committed) == self._scale.shards - 1 and self.account.exits[-1] == "1" and not self._due:
                self.account.poison_traceback = str(record["traceback"])
                self._mark.unlink(missing_ok=True)
                log.info("chaos: all but the poisoned shard are committed; the poison is lifted")
        return len(committed)

    def _start(self, name: str, workers: int) -> subprocess.Popen:
        scale, size = self._scale, 4 * self._scale.micro_batches
        sampler = {
            "delay_s": scale.delay_s,
            "trace": str(self._traces),
            "driver": name,
            "poison": self._poisoned * size,
            "poison_mark": str(self._mark),
            "scratch_bytes": 1 << 16,
        }
        flags = {
            "out": str(self._work / name),
            "paths.corpus": self._url,
            "corpus.num_samples": scale.shards * size,
            "corpus.samples_per_shard": size,
            "ray.generate_workers": workers,
        }
        command = [sys.executable, "-m", "jobs.suites._chaos_driver", json.dumps(sampler)]
        command += [text for key, value in flags.items() for text in (f"--{key}", str(value))]
        with open(self._work / f"{name}.log", "ab") as file:
            return subprocess.Popen(
                command,
                cwd=_ROOT,
                env={**self._cluster.env, "AWS_ENDPOINT_URL": self._proxy.url},
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )


def _kill_group(process: subprocess.Popen) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
