"""Label the real unlabelled tiles: a corpus of them with p(label given image) of the joint model, by the same fan-out.

Sample i is unlabelled tile i, its pixels unchanged (16 bits are rounded to 8); the corpus has as many samples as there
are such tiles. The distill job mixes it with the generated one (``paths.labelled``).
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from dakter import config
from dakter.diffusion.sampler import SamplerConfig
from dakter.diffusion.softlabel import SoftLabelConfig
from jobs._cli import Job, Plan, main
from jobs._corpus_verbs import VERBS
from jobs._generation import GenerateSettings, effort, run
from jobs._shards import SamplerFactory
from jobs._tile_labeller import TileLabeller

__all__ = ["JOB", "LabelSettings", "run"]

log = logging.getLogger("dakter.jobs.label")


class LabelSettings(GenerateSettings):
    """Sections that labelling reads: those of generation.

    Of them these count: ``sampler.micro_batch`` and ``precision``; ``soft_label.evaluations``, those of the read-out,
    whatever ``soft_label.mode`` generated pairs have; and of ``corpus`` all but ``num_samples``.
    """

    stage: ClassVar[str] = "label"

    @property
    def url(self) -> str:
        return self.place("labelled")

    def factory(self) -> SamplerFactory:
        if self.soft_label.mode == "chains":
            log.warning("soft_label.mode is chains; real images are labelled by the read-out all the same")
        return functools.partial(
            TileLabeller,
            self.place("model"),
            self.place("tiles"),
            self.soft_label.evaluations,
            self.sampler.micro_batch,
            self.sampler.precision,
            self.corpus.seed,
            self.ray.generate_cpus,
            self.device,
        )

    def of_sampler(self, identity: Mapping[str, Any], where: str) -> Self:
        sampler = {key: identity[key] for key in ("micro_batch", "precision")}
        update = {
            "sampler": config.load(SamplerConfig, sampler, where=where),
            "soft_label": config.load(SoftLabelConfig, {"evaluations": identity["evaluations"]}, where=where),
        }
        return self.model_copy(update=update)


def plan(settings: LabelSettings) -> Plan:
    """What ``run`` would do."""
    return Plan(
        reads=[f"model {settings.place('model')}", f"tiles {settings.place('tiles')}: unlabelled"],
        computes=[
            f"p(label given image) of every unlabelled tile, {settings.soft_label.evaluations} evaluations of the "
            f"read-out each, noise from corpus seed {settings.corpus.seed}, less those that are committed",
            *effort(settings),
        ],
        writes=[f"corpus {settings.url}"],
    )


JOB = Job(
    "label",
    "Label the real unlabelled tiles with the joint model into a corpus of their own.",
    settings=LabelSettings,
    run=run,
    plan=plan,
    verbs=VERBS,
)

if __name__ == "__main__":
    from jobs.label import JOB  # its importable self: classes in __main__ do not pickle for Ray

    raise SystemExit(main(JOB))
