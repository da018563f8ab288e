"""Labels of real unlabelled images by the joint model and the control's students together.

The two err in different places, so that their weighted mean is the better label (``dakter.evaluate.pooling``); weights
are those of the least NLL on val. The control's students are there anyway: the distilled arm is compared with them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch

from dakter import storage
from dakter.data.tiles import TileCorpus
from dakter.errors import ConflictError
from dakter.evaluate.calibration import proper_sums
from dakter.evaluate.pooling import fit_weights, pooled
from dakter.schema import soft_from_stored, soft_to_stored
from dakter.students.models import predict
from dakter.students.store import load_student
from dakter.students.train import LabelledArrays
from jobs._cli import Stop
from jobs._context import RunContext, current, enter
from jobs._packages import JointModel, open_joint_model, predict_raw, raw_values
from jobs._ray import RayConfig, ResourceDeadline
from jobs._sources import Mix, Source

log = logging.getLogger("dakter.jobs.distill")
# Names of the members in records, in the order of their weights: the joint model, and the mean of the control.
MEMBERS = ("joint-model", "real")


@dataclass(frozen=True)
class Pooling:
    """How labels are pooled.

    Attributes:
        model: URL of the joint model that labelled the images.
        evaluations, seed: of its read-out on val.
        tiles: URL of the tiles that it learned from.
        labelled: the images, with its labels.
        record: URL of the weights, which a resumed job takes over.
    """

    model: str
    evaluations: int
    seed: int
    tiles: str
    labelled: Source
    record: str

    @classmethod
    def open(
        cls, model: str, mix: Mix, sources: Sequence[tuple[Source, float]], tiles: TileCorpus, *, seed: int, record: str
    ) -> Self:
        """Check what can be told before any student is trained.

        Raises:
            ConflictError: another model labelled them, or the model is not of these tiles.
            DataError, IntegrityError: no model is there, or it was altered.
        """
        assert mix.labelled, "MixedStudentsConfig.share refused the settings otherwise"
        labelled = next(source for source, _ in sources if source.url == mix.labelled.url)
        sampler = mix.labelled.identity["sampler"]
        made = cls(model, int(sampler["evaluations"]), seed, tiles.url, labelled, record)
        digest = made._joint_model().model_digest
        if digest != sampler["model_digest"]:
            raise ConflictError(
                f"{labelled.url}: labelled by the model {str(sampler['model_digest'])[:16]}; {model} is {digest[:16]}. "
                "Mend paths.model or paths.labelled"
            )
        return made

    def _joint_model(self) -> JointModel:
        manifest = TileCorpus.open(self.tiles).manifest
        names = list(manifest.class_table.names)
        found = open_joint_model(
            self.model,
            manifest.to_json(),
            names,
            evaluations=self.evaluations,
            seed=self.seed,
            otherwise="leave students.pooled_labels out",
        )
        assert found, "a model of mode joint labels no images"
        return found

    def labels(self, students: Sequence[str], val: LabelledArrays, threads: int, device: str) -> Pooled:
        """Pooled labels of the images, computed here and now.

        Args:
            students: URLs of the control's students.
            val: what the weights are fitted on where no record holds them.
        """
        torch.set_num_threads(threads)
        assert self.labelled.pairs
        images, soft = self.labelled.pairs
        networks = [load_student(url).model.to(device) for url in students]

        def control(given: np.ndarray) -> np.ndarray:
            return np.mean([predict(network, given) for network in networks], axis=0)

        if storage.exists(self.record):
            told = dict(storage.read_json(self.record))
        else:
            package = self._joint_model().package(1.0).to(device)
            value_range = TileCorpus.open(self.tiles).manifest.value_range
            told = fitted([predict_raw(package, raw_values(val.images, value_range)), control(val.images)], val.labels)
            storage.put_json(self.record, told)
        weights = [told["weights"][name] for name in MEMBERS]
        return Pooled(soft_to_stored(pooled([soft_from_stored(soft).numpy(), control(images)], weights)), told)


@dataclass(frozen=True)
class Pooled:
    """Stored soft labels uint8 ``(N, K, H, W)``, and what is told of them: ``weights`` and ``val_nll`` by member."""

    soft: np.ndarray
    told: Mapping[str, Mapping[str, float]]

    def within(self, sources: Sequence[tuple[Source, float]], of: Source) -> tuple[tuple[Source, float], ...]:
        """``sources`` with these labels in place of those of ``of``."""
        assert of.pairs
        own = replace(of, pairs=(of.pairs[0], self.soft))
        return tuple((own if source is of else source, weight) for source, weight in sources)

    def figures(self) -> dict[str, float]:
        """For the stage record."""
        return {f"pool_{key}_{name}": value for key, found in self.told.items() for name, value in found.items()}


def fitted(members: Sequence[np.ndarray], labels: np.ndarray) -> dict[str, dict[str, float]]:
    """Weights of the least NLL on val, and the NLL of each member and of the pool, in nats a pixel."""
    weights = fit_weights(members, labels)
    scores = {}
    for name, probabilities in (*zip(MEMBERS, members, strict=True), ("pool", pooled(members, weights))):
        nll, _, count = proper_sums(probabilities, labels).sum(axis=0)
        scores[name] = float(nll / count)
    return {"weights": dict(zip(MEMBERS, weights.tolist(), strict=True)), "val_nll": scores}


def _labels(context: RunContext, pooling: Pooling, *arguments: Any) -> Pooled:
    enter(context)
    return pooling.labels(*arguments)


def on_worker(
    ray: Any, pooling: Pooling, students: Sequence[str], val: LabelledArrays, config: RayConfig, stop: Stop
) -> Pooled:
    """``pooling.labels`` where a student would be trained: a driver may have no GPU.

    Raises:
        Stopped: asked to stop; finished students are kept.
        StorageError: the cluster had no room for it for ``ray.start_timeout_s``.
    """
    deadline = ResourceDeadline(ray, config.trial_needs, 1, config.start_timeout_s)
    remote = ray.remote(_labels).options(num_cpus=config.trial_cpus, num_gpus=config.trial_gpus, max_retries=2)
    device = "cuda" if config.trial_gpus > 0 else "cpu"
    reference = remote.remote(current(), pooling, students, val, config.trial_cpus, device)
    try:
        while not ray.wait([reference], timeout=0.5)[0]:
            stop.check("finished students are kept")
            deadline.check(at_work=deadline.fits())
        found: Pooled = ray.get(reference)
    finally:
        ray.cancel(reference, force=True)
    log.info(
        "labels of real images: joint model %.2f, students of real labels %.2f; val NLL %.4f (joint model %.4f, "
        "students %.4f)",
        *found.told["weights"].values(),
        *(found.told["val_nll"][name] for name in ("pool", *MEMBERS)),
    )
    return found
