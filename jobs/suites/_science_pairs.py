"""Generated images of suite ``science`` with the label of the last step, drawn freely or for chosen label maps."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dakter.data.tiles import TileCorpus
from dakter.diffusion.label_maps import Candidates, MapPool, RenderConfig
from dakter.diffusion.network import describe
from dakter.diffusion.pipeline import JointDiffusionPipeline
from dakter.diffusion.softlabel import SoftLabelConfig
from dakter.progress import Progress
from dakter.schema import soft_to_stored, to_model, to_stored
from jobs._label_maps import likeliest
from jobs.suites._science_plan import Tier

log = logging.getLogger("dakter.jobs.benchmark")


def drawn(
    pipeline: JointDiffusionPipeline,
    tier: Tier,
    seed: int,
    pool: MapPool | None,
    name: str,
    check_stop: Callable[[], None],
) -> dict[str, np.ndarray]:
    """``image`` uint8 ``(N, C, H, W)`` and ``last_step``, its stored soft label, uint8 ``(N, K, H, W)``: of images that
    are drawn for label maps, those maps.
    """
    images, last = [], []
    progress = Progress(log, f"samples of {name}", tier.num_generated, "samples")
    for start in range(0, tier.num_generated, tier.sampler.micro_batch):
        check_stop()
        numbers = np.arange(start, min(start + tier.sampler.micro_batch, tier.num_generated))
        given = pool.give(numbers) if pool else None
        pairs = pipeline.sample(numbers, seed, tier.sampler, SoftLabelConfig(mode="last_step"), given)
        images.append(to_stored(pairs.images))
        last.append(soft_to_stored(pairs.soft_labels))
        progress.advance(len(numbers))
    return {"image": np.concatenate(images), "last_step": np.concatenate(last)}


def label_maps(
    corpus: TileCorpus, soft: np.ndarray, settings: Mapping[str, Any], seed: int, *, turned: bool
) -> MapPool:
    """As ``settings`` of RenderConfig say: masks of the training images, likeliest classes of the unlabelled ones by
    ``soft`` ``(N, K, H, W)``, or both; with what a network that is told descriptors is told.
    """
    render = RenderConfig.model_validate(settings)
    found = Candidates(
        render, corpus.manifest.class_table.names, seed, lambda images: describe(to_model(images)).numpy()
    )
    train = corpus.read("train")
    if render.maps in ("masks", "both"):
        found.offer(train.images, train.labels, "masks")
    if render.maps in ("labelled", "both"):
        found.offer(corpus.read("unlabelled").images, likeliest(soft), "labelled")
    return found.pool(turned=turned)
