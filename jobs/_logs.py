"""Log lines of drivers and workers: readable, or one JSON object a line; run and stage are in each."""

from __future__ import annotations

import datetime
import json
import logging
import sys
from collections.abc import Callable, Mapping
from typing import Any, TextIO

# Attribute of a log record that holds further fields of its JSON object, as ``extra={"fields": {...}}`` sets it.
FIELDS = "fields"
_relayed = logging.getLogger("dakter.worker")


class _Labelled(logging.Formatter):
    """Asks for run and stage at every line, since a process may go from stage to stage."""

    def __init__(self, labels: Callable[[], tuple[str, str]], *arguments: Any):
        super().__init__(*arguments)
        self._labels = labels


class TextFormatter(_Labelled):
    """``12:00:03 INFO [demo-3f9a1c generate] message``."""

    def __init__(self, labels: Callable[[], tuple[str, str]]):
        super().__init__(labels, "%(asctime)s %(levelname)s [%(run)s %(stage)s] %(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        record.run, record.stage = self._labels()
        return super().format(record)


class JsonFormatter(_Labelled):
    """``{"time": ..., "level": ..., "run": ..., "stage": ..., "logger": ..., "message": ..., <fields>}``."""

    def format(self, record: logging.LogRecord) -> str:
        run, stage = self._labels()
        line: dict[str, Any] = {
            "time": datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "run": run,
            "stage": stage,
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


class _StandardError(logging.StreamHandler):
    """Writes to what ``sys.stderr`` is at that moment."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, value: TextIO) -> None:
        raise AttributeError("always sys.stderr")


_handler = _StandardError()


def install(form: str, labels: Callable[[], tuple[str, str]]) -> None:
    """Log to standard error, once however often it is called; other libraries from WARNING on.

    Args:
        form: ``"text"`` or ``"json"``.
        labels: gives run and stage.
    """
    _handler.setFormatter(JsonFormatter(labels) if form == "json" else TextFormatter(labels))
    root = logging.getLogger()
    root.setLevel(logging.WARNING)
    for other in root.handlers[:]:  # Ray Train gives its workers one, which would say every line twice
        if isinstance(other, logging.StreamHandler) and type(other).__module__.startswith("ray."):
            root.removeHandler(other)
    if _handler not in root.handlers:
        root.addHandler(_handler)


def relay_workers() -> None:
    """Have what workers print arrive in the driver as JSON lines too: theirs as they are, others wrapped.

    Ray puts the worker's name before every line, which leaves no JSON. It has no public way to change that; should
    another release lack this one, lines come with their prefix.
    """
    try:
        from ray._private.ray_logging import global_worker_stdstream_dispatcher as dispatcher
    except ImportError:
        return
    for name in ("ray_print_logs", "dakter_json"):
        dispatcher.remove_handler(name)
    dispatcher.add_handler("dakter_json", _relay)


def _relay(batch: Mapping[str, Any]) -> None:
    if batch.get("pid") == "autoscaler":  # its reports are long and come every few seconds; its own log has them
        return
    fields = {key: str(batch[key]) for key in ("pid", "ip", "actor_name", "task_name") if batch.get(key)}
    for line in batch.get("lines") or ():
        if line.startswith('{"time": '):
            print(line, file=sys.stderr, flush=True)
        elif line.strip():
            _relayed.info("%s", line, extra={FIELDS: fields})
