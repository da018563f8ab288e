"""Making a corpus: what is missing of it, in rounds by a pool of actors, then its manifest."""

from __future__ import annotations

import functools
import logging
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self

from dakter import config, storage
from dakter.corpus import croissant, ledger, manifest, quote
from dakter.corpus.budget import BudgetConfig
from dakter.corpus.layout import CorpusConfig, Layout
from dakter.corpus.status import failure_lines, status
from dakter.diffusion.label_maps import RenderConfig
from dakter.diffusion.sampler import SamplerConfig
from dakter.diffusion.softlabel import SoftLabelConfig
from dakter.errors import DakterError, Stopped, listing
from dakter.progress import Progress
from jobs import _context, _metrics
from jobs._cli import JobSettings, Plan, Stop, versions
from jobs._label_maps import MapSource, outcome, settings_of
from jobs._model_sampler import ModelSampler
from jobs._ray import RayConfig, session, wait_for_resources
from jobs._shards import SamplerFactory, Work, fan_out, lost

log = logging.getLogger("dakter.jobs.generate")

# Of a model's record, what goes into the attributes of its corpus.
_PROVENANCE = ("source", "licence", "citation", "tiles_digest", "num_labelled")


class GenerateSettings(JobSettings):
    """Sections that generation reads; and of any corpus that is made like this one: where it stands, by what sampler.

    Attributes:
        stage: name of the job, for its log.
    """

    stage: ClassVar[str] = "generate"
    sampler: SamplerConfig = SamplerConfig()
    soft_label: SoftLabelConfig = SoftLabelConfig()
    render: RenderConfig = RenderConfig()
    corpus: CorpusConfig = CorpusConfig()
    budget: BudgetConfig = BudgetConfig()
    ray: RayConfig = RayConfig()

    @property
    def url(self) -> str:
        """Where the corpus stands."""
        return self.place("corpus")

    @property
    def device(self) -> str:
        """Where actors compute: ``"cpu"`` or ``"cuda"``."""
        return "cuda" if self.ray.generate_gpus else "cpu"

    @property
    def machine(self) -> str:
        """The device type that commit records name, e.g. ``"cpu x86_64"``."""
        return f"{self.device} {platform.machine()}"

    def factory(self) -> SamplerFactory:
        """What makes the sampler in every process."""
        return functools.partial(
            ModelSampler,
            self.place("model"),
            self.sampler,
            self.soft_label,
            self.corpus.seed,
            self.ray.generate_cpus,
            self.device,
            MapSource(self.render, self.place("tiles"), self.place("labelled")) if self.render.renders else None,
        )

    def of_sampler(self, identity: Mapping[str, Any], where: str) -> Self:
        """These settings with what the identity of a sampler fixes taken from it; ``where`` names it in errors."""
        update = {
            "sampler": config.load(SamplerConfig, identity["sampler"], where=where),
            "soft_label": config.load(SoftLabelConfig, identity["soft_label"], where=where),
            "render": settings_of(identity.get("render", {}), where),
        }
        return self.model_copy(update=update)


def run(settings: GenerateSettings, stop: Stop) -> Mapping[str, Any]:
    """Make what is missing of the corpus, then its manifest; returns the figures of the stage record."""
    return run_with(settings, stop, settings.factory())


def run_with(settings: GenerateSettings, stop: Stop, factory: SamplerFactory) -> dict[str, Any]:
    """``run`` with any sampler; ``factory`` must pickle.

    Raises:
        ConflictError: a corpus with other settings stands there.
        DakterError: shards were set aside, or lost; names them. All others are committed.
        Stopped: as asked, or a cap of ``budget`` is reached; finished shards are kept.
    """
    layout, wanted, todo = begin(settings, factory)
    if not todo and status(layout)["finalised"]:
        found = manifest.read_manifest(layout)
        assert found is not None
        croissant.write(layout)  # a run may have died between the manifest and it
        return {**_figures(found, settings, layout), "already_done": True}
    start = time.monotonic()
    if todo:
        make(settings, stop, factory, layout, todo, wanted)
    seconds = time.monotonic() - start
    made = sum(map(layout.size, todo))
    return {
        **_figures(finish(settings, layout), settings, layout),
        "num_samples_made": made,
        "seconds": round(seconds, 3),
        "samples_per_second": round(made / max(seconds, 1e-9), 3),
    }


def begin(settings: GenerateSettings, factory: SamplerFactory) -> tuple[Layout, int, tuple[int, ...]]:
    """The corpus, begun if need be and grown to the samples asked for: (layout, shards wanted, shards to make)."""
    sampler = factory()
    storage.check_writable(settings.url)
    record = getattr(sampler, "record", {})
    provenance = {key: record[key] for key in _PROVENANCE if key in record}
    layout = Layout.begin(settings.url, settings.corpus.identity(sampler), provenance=provenance)
    wanted = layout.num_shards(settings.corpus.num_samples)
    layout.grow(wanted)
    standing = set(layout.committed())
    return layout, wanted, tuple(shard for shard in range(wanted) if shard not in standing)


def finish(settings: GenerateSettings, layout: Layout) -> dict[str, Any]:
    """Read all back and write the manifest and what goes with it; returns the manifest."""
    log.info("%s: reading %d shards back for the manifest", settings.stage, len(layout.committed()))
    found = manifest.finalise(layout)
    log.info("%s: %d samples, corpus digest %s", settings.stage, found["num_samples"], found["digest"])
    if found["num_shards"]:
        croissant.write(layout)
    return found


def _figures(found: Mapping[str, Any], settings: GenerateSettings, layout: Layout) -> dict[str, Any]:
    names = layout.content.class_table.names
    compared, render = quote.compare(layout, found), layout.identity["sampler"].get("render", {})
    for line in quote.comparison_lines(compared):
        log.info("%s: %s", settings.stage, line)
    return {
        "num_samples": found["num_samples"],
        "num_shards": found["num_shards"],
        "samples_per_shard": layout.samples_per_shard,
        "bytes": found["bytes"],
        "mean_entropy_nats_per_pixel": found["entropy_nats"],
        "class_shares": dict(zip(names, found["class_shares"], strict=True)),
        "corpus_digest": found["digest"],
        **({"quote_against_actual": compared} if compared else {}),
        **({"rendered": outcome(layout.url, render, settings.place("tiles"))} if render.get("quotas") else {}),
    }


def make(
    settings: GenerateSettings,
    stop: Stop,
    factory: SamplerFactory,
    layout: Layout,
    todo: Sequence[int],
    wanted: int,
) -> None:
    """Have ``todo`` made, round after round as long as one brings something: Ray may lose work, commits tell.

    Args:
        wanted: shards in all, for the log.
    """
    for shard in set(todo) & set(layout.failed()):  # a new start tries again what an earlier one gave up
        storage.delete(layout.place(layout.failed_key(shard)))
    ledger.sweep(layout)
    if any(run["outcome"] == "running" for run in ledger.runs(layout)):
        log.warning(
            "%s: another run seems to be at work on %s; this one begins at the other end", settings.stage, layout.url
        )
        todo = todo[::-1]
    stored = quote.stored(layout) if settings.budget.max_bytes else 0
    total, size = layout.samples_before(wanted), layout.samples_per_shard
    done = total - sum(map(layout.size, todo))
    log.info("%s: %d of %d samples stand; %d shards of %d to make", settings.stage, done, total, len(todo), size)
    progress = Progress(log, settings.stage, total, "samples", done=done)
    with session(settings.ray) as ray:
        stop.install()
        workers = min(settings.ray.generate_workers, len(todo))
        timeout_s = settings.ray.start_timeout_s
        wait_for_resources(ray, settings.ray.generate_needs, 1, timeout_s=timeout_s, stop=stop, wish=workers)
        record = ledger.RunRecord(layout, workers, ledger.spent_s(layout), stored)
        try:
            _rounds(ray, settings, stop, factory, layout, list(todo), progress, record)
        except BaseException as error:
            record.end("stopped" if isinstance(error, Stopped | KeyboardInterrupt) else "failed")
            raise
        failed = [row for row in status(layout)["failed"] if row["shard"] in set(todo)]
        record.end("with failed shards" if failed else "done")
    if failed:
        raise DakterError(
            f"{layout.url}: {len(failed)} shards were set aside (tracebacks in failed/); all others are committed. "
            f"Mend the cause and start again:\n{listing(failure_lines(failed))}"
        )


def _rounds(
    ray: Any,
    settings: GenerateSettings,
    stop: Stop,
    factory: SamplerFactory,
    layout: Layout,
    left: list[int],
    progress: Progress,
    record: ledger.RunRecord,
) -> None:
    while left:
        _round(ray, settings, stop, factory, layout, tuple(left), progress, record)
        still = lost(left, layout)
        kept = f"{len(layout.committed())} shards of {layout.planned_shards()} are committed"
        if still:
            stop.check(kept)
        if len(still) == len(left):
            raise DakterError(
                f"{layout.url}: no shard came out of a whole round, though Ray reported none failed:\n"
                + listing([f"shard {shard}" for shard in still])
                + f"\n{kept}; start again to resume"
            )
        left = still


def _round(
    ray: Any,
    settings: GenerateSettings,
    stop: Stop,
    factory: SamplerFactory,
    layout: Layout,
    shards: tuple[int, ...],
    progress: Progress,
    record: ledger.RunRecord,
) -> None:
    corpus = settings.corpus
    work = Work(
        corpus=layout.url,
        identity_digest=layout.digest,
        shards=shards,
        max_attempts=corpus.max_attempts,
        patience_s=corpus.patience_s,
        context=replace(_context.current(), log_level=settings.log_level),
        cpus=settings.ray.generate_cpus,
        facts={"device": settings.machine, "versions": versions()},
    )
    before = len(lost(shards, layout))
    try:
        rows = fan_out(
            ray,
            factory,
            work,
            settings.ray,
            run=record,
            budget=settings.budget,
            stall_s=corpus.stall_s,
            should_stop=stop,
        )
        for row in rows:
            log.debug("shard %d: %s", row.shard, row.outcome)
            _metrics.shard(row.outcome, _context.labels())
            if row.outcome in ("written", "stood"):
                record.count(row.bytes)
                progress.advance(layout.size(row.shard))
    except (DakterError, KeyboardInterrupt):
        raise
    except Exception as error:
        if len(lost(shards, layout)) == before:
            raise DakterError(f"sampling actors failed before any shard was committed: {error}") from error
        log.warning("%s: the run broke off (%s); what is missing is started again", settings.stage, error)


def plan(settings: GenerateSettings) -> Plan:
    """What ``run`` would do."""
    corpus = settings.corpus
    return Plan(
        reads=[f"model {settings.place('model')}", *_maps_read(settings)],
        computes=[
            f"{corpus.num_samples} pairs from corpus seed {corpus.seed}, less those that are committed",
            *(f"{share:g} of them for label maps {what}" for what, share in _asked(settings.render).items()),
            *effort(settings),
        ],
        writes=[f"corpus {settings.url}"],
    )


def _asked(render: RenderConfig) -> dict[str, float]:
    """Shares of samples that are drawn for label maps, by what these are."""
    found = {f"with {name}": share for name, share in render.quotas.items()}
    return {**found, "of any kind": render.others} if render.others else found


def _maps_read(settings: GenerateSettings) -> list[str]:
    if not settings.render.renders:
        return []
    masks, labelled = f"tiles {settings.place('tiles')}: masks of train", f"labelled tiles {settings.place('labelled')}"
    return {"masks": [masks], "labelled": [labelled], "both": [masks, labelled]}[settings.render.maps]


def effort(settings: GenerateSettings) -> list[str]:
    """Of a plan: by whom, and within which caps."""
    ray, budget = settings.ray, settings.budget
    caps = [
        f"{name} {getattr(budget, name):g}" for name in ("max_hours", "max_cost", "max_bytes") if getattr(budget, name)
    ]
    return [
        f"by {ray.generate_workers} actors of {ray.generate_cpus} CPUs and {ray.generate_gpus:g} GPUs",
        f"within {', '.join(caps)}" if caps else "without a cap on hours, cost or bytes (budget.*)",
    ]
