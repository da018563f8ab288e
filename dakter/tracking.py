"""Experiments, models and their aliases in MLflow: the one file that imports it, and only when it is used.

Everything goes through an ``MlflowClient`` bound to an explicit address, so that no global state of MLflow is set and
several trackers can live in one process. A local run without a server uses a SQLite database beside its output.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from pydantic import field_validator

from dakter import storage
from dakter.config import Config, setting
from dakter.errors import ConfigError, ConflictError, IntegrityError
from dakter.registry import PACKAGE_TAG, Registry, Version, code, version_of
from dakter.tracking_address import check_no_password, check_server, tracking_uri

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure

log = logging.getLogger("dakter.tracking")

KEY_TAG = "dakter.key"
RunStatus = Literal["FINISHED", "FAILED", "KILLED"]


class TrackingConfig(Config):
    """Where runs and models are recorded."""

    uri: str | None = setting(
        None,
        "MLflow tracking and registry address (http(s)://, sqlite:///, postgresql://); null: MLFLOW_TRACKING_URI, "
        "else a SQLite database below a local out",
    )
    _no_password = field_validator("uri")(check_no_password)

    experiment: str = setting("dakter", "experiment that holds the runs", min_length=1)
    model_name: str = setting(
        "dakter-segmenter", "registered model whose versions are promoted", pattern=r"^[A-Za-z0-9_.\-]{1,200}$"
    )
    lock_wait_s: float = setting(60.0, "how long a promotion waits for another one to end", unit="s", ge=0)
    lock_stale_min: float = setting(
        60.0, "age after which a promotion's lock counts as left behind by a crash", unit="min", gt=0
    )


class Tracker:
    """Runs and models at one MLflow address.

    Attributes:
        uri: the resolved address, to hand to workers: ``config.model_copy(update={"uri": tracker.uri})``.
        config: its settings.
        registry: versions, aliases and lock of the registered model.
    """

    def __init__(self, client: Any, uri: str, config: TrackingConfig, experiment_id: str):
        self._client, self.uri, self.config, self._experiment_id = client, uri, config, experiment_id
        self.registry = Registry(
            client, config.model_name, lock_wait_s=config.lock_wait_s, lock_stale_min=config.lock_stale_min
        )

    @classmethod
    def open(cls, config: TrackingConfig, out: str) -> Tracker:
        """Connect; a SQLite database is created and migrated first, by one process at a time.

        Args:
            config: ``uri`` null means MLFLOW_TRACKING_URI, else ``<out>/mlflow.db``.
            out: folder of the run, local path or ``s3://`` URL.

        Raises:
            ConfigError: no address is given and ``out`` is not local.
            StorageError: the server does not answer.
        """
        uri = tracking_uri(config.uri, out)
        location = _prepare(uri)
        client = _mlflow().MlflowClient(tracking_uri=uri, registry_uri=uri)
        return cls(client, uri, config, _experiment(client, config.experiment, location))

    def run(
        self, key: str, *, name: str, parent: str | None = None, tags: Mapping[str, str] | None = None
    ) -> TrackedRun:
        """The run of ``key``: found again (and set running) if it stands, else created.

        Args:
            key: identity of the work, unique in the experiment, without quotes; kept in the tag ``dakter.key``.
            name: for people.
            parent: run id to nest below.
            tags: further tags.
        """
        if "'" in key or '"' in key or "`" in key:
            raise ConfigError(f"run key {key!r}: holds a quote; expected plain text")
        found = self._client.search_runs([self._experiment_id], f"tags.`{KEY_TAG}` = '{key}'", max_results=1)
        if found:
            again = TrackedRun(self._client, found[0].info.run_id)
            self._client.update_run(again.id, status="RUNNING", name=name)
            again.tags(tags or {})
            return again
        every = {KEY_TAG: key, **(tags or {}), **({"mlflow.parentRunId": parent} if parent else {})}
        made = self._client.create_run(self._experiment_id, run_name=name, tags=every)
        return TrackedRun(self._client, made.info.run_id)

    def attach(self, run_id: str) -> TrackedRun:
        """A run by its id, status untouched."""
        return TrackedRun(self._client, run_id)

    def log_student(
        self,
        run: TrackedRun,
        packaged: torch.nn.Module,
        example: torch.Tensor,
        *,
        num_classes: int,
        weights: Path,
        metadata: Mapping[str, Any],
        digest: str,
        tags: Mapping[str, str] | None = None,
        kind: str = "student",
    ) -> Version:
        """Log a packaged segmenter as pt2 (torch.export, no pickle) and register it; the same digest only once.

        Call it under ``registry.lock``: two callers at once could else register one digest twice.

        Args:
            packaged: raw float32 (B, C, H, W) in, probabilities float32 (B, K, H, W) out; exportable.
            example: a raw batch of two or more images, no side shorter than 5, so that no axis is frozen.
            weights: local folder (``weights.safetensors``, ``student.json``) kept beside the graph, for fine-tuning;
                folders below it are kept as they are.
            metadata: JSON; class names, value range, bands and digests of what it was made from.
            digest: identity of the package.
            tags: further tags of the version.
            kind: what it is, in a word that names the folder of its weights.
        """
        standing = self.registry.find(digest)
        if standing is not None:
            return standing
        model = self._client.create_logged_model(self._experiment_id, name=kind, source_run_id=run.id)
        with tempfile.TemporaryDirectory(prefix="dakter-model-") as temporary:
            folder = Path(temporary) / "model"
            _save_checked(folder, packaged, example, num_classes, dict(metadata), model, run.id)
            shutil.copytree(weights, folder / kind)
            self._client.log_model_artifacts(model.model_id, str(folder))
        self._client.finalize_logged_model(model.model_id, "READY")
        self.registry.create(self.config.model_name, {})
        made = self._client.create_model_version(
            self.config.model_name,
            source=model.artifact_location,  # "models:/<id>" would be looked up at the global address
            run_id=run.id,
            model_id=model.model_id,
            tags={**(tags or {}), PACKAGE_TAG: digest},
        )
        return version_of(made)

    def load_student(self, version: Version) -> Callable[[torch.Tensor], torch.Tensor]:
        """The graph of a version, from MLflow: raw float32 (B, C, H, W) in, probabilities (B, K, H, W) out."""
        mlflow = _mlflow()
        location = self._client.get_model_version_download_uri(version.name, version.number)
        with tempfile.TemporaryDirectory(prefix="dakter-model-") as folder:
            mlflow.artifacts.download_artifacts(artifact_uri=location, dst_path=folder, tracking_uri=self.uri)
            (found,) = Path(folder).rglob("MLmodel")
            return mlflow.pytorch.load_model(str(found.parent))


class TrackedRun:
    """One run. ``id`` is MLflow's run id."""

    def __init__(self, client: Any, run_id: str):
        self._client, self.id = client, run_id

    def params(self, params: Mapping[str, Any]) -> None:
        """Record settings, nested tables flattened with dots; the same again is fine.

        Raises:
            ConflictError: a setting stands with another value.
        """
        from mlflow.entities import Param

        items = [Param(key, str(value)[:6000]) for key, value in _flat(params)]
        try:
            for start in range(0, len(items), 100):
                self._client.log_batch(self.id, params=items[start : start + 100])
        except Exception as error:
            if code(error) != "INVALID_PARAMETER_VALUE":
                raise
            told = f"{error}; expected the settings that the run was started with; use another out, or delete the run"
            raise ConflictError(f"run {self.id}: {told}") from error

    def metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Record scalars at a step; names may hold letters, digits, ``_-. /``."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        items = [Metric(key, float(value), now, step) for key, value in metrics.items()]
        for start in range(0, len(items), 1000):
            self._client.log_batch(self.id, metrics=items[start : start + 1000])

    def tags(self, tags: Mapping[str, str]) -> None:
        """Set tags."""
        from mlflow.entities import RunTag

        if tags:
            self._client.log_batch(self.id, tags=[RunTag(key, str(value)) for key, value in tags.items()])

    def figure(self, figure: Figure, name: str) -> None:
        """Record a matplotlib figure as ``name`` (``"curves/loss.png"``); the caller closes it."""
        self._client.log_figure(self.id, figure, name)

    def document(self, data: Any, name: str) -> None:
        """Record JSON as ``name`` (``"x/y.json"``)."""
        self.file(storage.to_json_bytes(data), name)

    def file(self, data: bytes, name: str) -> None:
        """Record bytes as the artifact ``name`` (``"x/y.npz"``), replacing what stood there."""
        folder, _, base = name.rpartition("/")
        with tempfile.TemporaryDirectory(prefix="dakter-artifact-") as temporary:
            path = Path(temporary) / base
            path.write_bytes(data)
            self._client.log_artifact(self.id, str(path), folder or None)

    def read(self, name: str) -> bytes | None:
        """The bytes of an artifact, None if there is none of that name."""
        folder = name.rpartition("/")[0]
        if name not in {item.path for item in self._client.list_artifacts(self.id, folder or None)}:
            return None
        with tempfile.TemporaryDirectory(prefix="dakter-artifact-") as temporary:
            return Path(self._client.download_artifacts(self.id, name, temporary)).read_bytes()

    def dataset(self, name: str, url: str, digest: str, context: str) -> None:
        """Record a tile corpus or synthetic corpus as an input; ``context`` says what for (``"train"``, ``"test"``)."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        source = _zarr_source()(url, digest)
        # MLflow keeps 36 characters of a digest; the source holds all of it.
        data = Dataset(name, digest[:36], source._get_source_type(), source.to_json())
        self._client.log_inputs(self.id, [DatasetInput(data, [InputTag("mlflow.data.context", context)])])

    def end(self, status: RunStatus = "FINISHED") -> None:
        """Close the run."""
        self._client.set_terminated(self.id, status)


def _prepare(uri: str) -> str | None:
    """Make the backend ready; returns where a new experiment keeps its artifacts (None: the server's choice)."""
    if uri.startswith(("http://", "https://")):
        check_server(uri)
        return None
    if not uri.startswith("sqlite:///"):
        return None
    database = Path(uri.removeprefix("sqlite:///")).absolute()
    database.parent.mkdir(parents=True, exist_ok=True)
    # Six processes on a fresh database all fail inside MLflow's migrations; under this lock one does them.
    with open(database.with_suffix(".lock"), "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _mlflow().MlflowClient(tracking_uri=uri, registry_uri=uri).search_experiments(max_results=1)
    return (database.parent / "mlartifacts").as_uri()


def _experiment(client: Any, name: str, location: str | None) -> str:
    standing = client.get_experiment_by_name(name)
    if standing is None:
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except Exception as error:
            if code(error) != "RESOURCE_ALREADY_EXISTS":
                raise
            standing = client.get_experiment_by_name(name)
    if standing.lifecycle_stage != "active":
        raise ConflictError(f"experiment {name!r} was deleted in MLflow; restore it there or set tracking.experiment")
    return str(standing.experiment_id)


def _flat(tables: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tables.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _save_checked(folder: Path, packaged: torch.nn.Module, example: torch.Tensor, *rest: Any) -> None:
    """Save the graph and see that it gives the network's own answer for one image and for another size.

    A traced graph refuses sizes that its trace assumed away. Most networks lose none if torch treats 0 and 1 as any
    size; Mix Transformers trace the other way round (images must be larger than the stride). The first right one stays.
    """
    import torch
    from torch.fx.experimental import _config

    failures = []
    for oblivious in (True, False):
        shutil.rmtree(folder, ignore_errors=True)
        with _config.patch(backed_size_oblivious=oblivious):  # type: ignore[attr-defined]
            _save_pt2(folder, packaged, example, *rest)
        graph = _mlflow().pytorch.load_model(str(folder))
        try:
            with torch.no_grad():
                for raw in (example[:1], example[..., :-1, :-2], torch.cat([example, example])):
                    torch.testing.assert_close(graph(raw), packaged(raw), rtol=1e-4, atol=1e-5)
            return
        except (AssertionError, RuntimeError) as error:
            failures.append(str(error).splitlines()[0][:200])
    told = "; ".join(failures)
    raise IntegrityError(f"the exported graph does not do what the network does: {told}; take another architecture")


def _save_pt2(
    folder: Path,
    packaged: torch.nn.Module,
    example: torch.Tensor,
    num_classes: int,
    metadata: dict[str, Any],
    model: Any,
    run_id: str,
) -> None:
    mlflow = _mlflow()
    import numpy as np
    import torch
    from mlflow.models import Model, ModelSignature
    from mlflow.types.schema import Schema, TensorSpec

    def spec(channels: int) -> Schema:
        return Schema([TensorSpec(np.dtype(np.float32), (-1, channels, -1, -1))])

    mlflow.pytorch.save_model(
        packaged.eval(),
        str(folder),
        mlflow_model=Model(
            artifact_path=model.artifact_location, model_uuid=model.model_id, run_id=run_id, model_id=model.model_id
        ),
        signature=ModelSignature(spec(example.shape[1]), spec(num_classes)),
        input_example=example.numpy(),
        serialization_format="pt2",
        # Named, not inferred: inference loads the model in a further process, and a graph needs torch alone.
        pip_requirements=[f"mlflow=={mlflow.__version__}", f"torch=={torch.__version__.split('+')[0]}", "numpy"],
        metadata=metadata,
    )


@cache
def _mlflow() -> ModuleType:
    """Import MLflow: usage reports off (a user's own choice stays) and nothing unpickled when a model is loaded."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    import mlflow
    import mlflow.artifacts
    import mlflow.pytorch

    return mlflow


@cache
def _zarr_source() -> type:
    """MLflow's dataset source for a corpus: where it stands and the digest it had."""
    _mlflow()
    from mlflow.data.dataset_source import DatasetSource
    from mlflow.data.dataset_source_registry import register_dataset_source

    class ZarrCorpusSource(DatasetSource):
        def __init__(self, url: str, digest: str):
            self.url, self.digest = url, digest

        @staticmethod
        def _get_source_type() -> str:
            return "dakter_zarr"

        @staticmethod
        def _can_resolve(raw_source: Any) -> bool:
            return False  # made here alone, never guessed from a path

        @classmethod
        def _resolve(cls, raw_source: Any) -> ZarrCorpusSource:
            raise NotImplementedError

        def load(self) -> str:
            """The URL, after a look that the corpus is still the one that was used."""
            digest = storage.read_json(storage.join(self.url, "manifest.json"))["digest"]
            if digest != self.digest:
                raise IntegrityError(
                    f"{self.url}: digest {digest}; expected {self.digest}, as when it was used; make it again with "
                    "the run's settings"
                )
            return self.url

        def to_dict(self) -> dict[str, Any]:
            return {"url": self.url, "digest": self.digest}

        @classmethod
        def from_dict(cls, source_dict: dict[Any, Any]) -> ZarrCorpusSource:
            return cls(source_dict["url"], source_dict["digest"])

    register_dataset_source(ZarrCorpusSource)  # type: ignore[arg-type]  # MLflow's hint says instance, it takes classes
    return ZarrCorpusSource
