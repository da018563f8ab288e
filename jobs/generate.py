"""Generate the synthetic corpus: image and soft-label pairs from the joint model, fanned out over Ray Data actors."""

from __future__ import annotations

import functools
import logging
import platform
import time
from collections.abc import Mapping
from typing import Any

from dakter import storage
from dakter.corpus import manifest
from dakter.corpus.layout import CorpusConfig, Layout
from dakter.diffusion.sampler import SamplerConfig
from dakter.diffusion.softlabel import SoftLabelConfig
from dakter.errors import DakterError, IntegrityError, listing
from dakter.progress import Progress, duration
from jobs._cli import Job, JobSettings, Plan, Stop, main
from jobs._model_sampler import ModelSampler
from jobs._ray import RayConfig, session, wait_for_resources
from jobs._shards import SamplerFactory, Work, failure_text, fan_out, lost

log = logging.getLogger("dakter.jobs.generate")


class GenerateSettings(JobSettings):
    """Sections that generation reads."""

    sampler: SamplerConfig = SamplerConfig()
    soft_label: SoftLabelConfig = SoftLabelConfig()
    corpus: CorpusConfig = CorpusConfig()
    ray: RayConfig = RayConfig()


def _factory(settings: GenerateSettings) -> SamplerFactory:
    return functools.partial(
        ModelSampler,
        settings.place("model"),
        settings.sampler,
        settings.soft_label,
        settings.corpus.seed,
        settings.ray.generate_cpus,
        _device(settings.ray),
    )


def _device(ray: RayConfig) -> str:
    return "cuda" if ray.generate_gpus else "cpu"


def run(settings: GenerateSettings, stop: Stop) -> Mapping[str, Any]:
    """Make what is missing of the corpus, then its manifest; returns the figures of the stage record."""
    factory = _factory(settings)
    return run_with(settings, stop, factory)


def run_with(settings: GenerateSettings, stop: Stop, factory: SamplerFactory) -> dict[str, Any]:
    """``run`` with any sampler; ``factory`` must pickle.

    Raises:
        ConflictError: a corpus with other settings stands there.
        DakterError: shards were set aside, or lost; names them. All others are committed.
        Stopped: as asked, with finished shards kept.
    """
    sampler = factory()
    url = settings.place("corpus")
    storage.check_writable(url)
    record = getattr(sampler, "record", {})
    provenance = {key: record[key] for key in ("source", "licence", "citation", "tiles_digest") if key in record}
    provenance["model"] = settings.place("model")
    layout = Layout.begin(url, settings.corpus.identity(sampler), provenance=provenance)
    del sampler  # its memory is the actors' now
    wanted = range(layout.num_shards(settings.corpus.num_samples))
    layout.grow(len(wanted))
    standing = set(layout.committed())
    todo = tuple(shard for shard in wanted if shard not in standing)
    if not todo and manifest.status(layout)["finalised"]:
        found = manifest.read_manifest(layout)
        assert found is not None
        return {**_figures(found, layout), "already_done": True}
    start = time.monotonic()
    if todo:
        _make(settings, stop, factory, layout, todo, len(wanted))
    seconds = time.monotonic() - start
    log.info("generate: reading %d shards back for the manifest", len(layout.committed()))
    found = manifest.finalise(layout)
    made = len(todo) * layout.samples_per_shard
    log.info("generate: %d samples, corpus digest %s", found["num_samples"], found["digest"])
    return {
        **_figures(found, layout),
        "num_samples_made": made,
        "seconds": round(seconds, 3),
        "samples_per_second": round(made / max(seconds, 1e-9), 3),
    }


def _figures(found: Mapping[str, Any], layout: Layout) -> dict[str, Any]:
    names = layout.content.class_table.names
    return {
        "num_samples": found["num_samples"],
        "num_shards": found["num_shards"],
        "samples_per_shard": layout.samples_per_shard,
        "bytes": found["bytes"],
        "mean_entropy_nats_per_pixel": found["entropy_nats"],
        "class_shares": dict(zip(names, found["class_shares"], strict=True)),
        "corpus_digest": found["digest"],
    }


def _make(
    settings: GenerateSettings, stop: Stop, factory: SamplerFactory, layout: Layout, todo: tuple[int, ...], wanted: int
) -> None:
    """Have ``todo`` made, round after round as long as one brings something: Ray may lose work, commits tell."""
    size = layout.samples_per_shard
    for shard in set(todo) & set(layout.failed()):  # a new start tries again what an earlier one gave up
        storage.delete(layout.place(layout.failed_key(shard)))
    done = (wanted - len(todo)) * size
    log.info("generate: %d of %d samples stand; %d shards of %d to make", done, wanted * size, len(todo), size)
    progress = Progress(log, "generate", wanted * size, "samples", done=done)
    with session(settings.ray) as ray:
        stop.install()
        needs = {"CPU": float(settings.ray.generate_cpus), "GPU": settings.ray.generate_gpus}
        wait_for_resources(ray, needs, 1, timeout_s=settings.ray.start_timeout_s, stop=stop)
        left = list(todo)
        while left:
            _round(ray, settings, stop, factory, layout, tuple(left), progress)
            still = lost(left, layout)
            kept = f"{len(layout.committed())} shards of {wanted} are committed"
            if still:
                stop.check(kept)
            if len(still) == len(left):
                raise DakterError(
                    f"{layout.url}: no shard came out of a whole round, though Ray reported none failed:\n"
                    + listing([f"shard {shard}" for shard in still])
                    + f"\n{kept}; start again to resume"
                )
            left = still
    failed = [row for row in manifest.status(layout)["failed"] if row["shard"] in set(todo)]
    if failed:
        raise DakterError(
            f"{layout.url}: {len(failed)} shards were set aside (tracebacks in failed/); all others are committed. "
            f"Mend the cause and start again:\n{listing(failure_text(failed))}"
        )


def _round(
    ray: Any,
    settings: GenerateSettings,
    stop: Stop,
    factory: SamplerFactory,
    layout: Layout,
    shards: tuple[int, ...],
    progress: Progress,
) -> None:
    device = f"{_device(settings.ray)} {platform.machine()}"
    work = Work(layout.url, layout.digest, shards, settings.corpus.max_attempts, settings.log_level, device)
    before = len(lost(shards, layout))
    try:
        rows = fan_out(ray, factory, work, settings.ray, stall_s=settings.corpus.stall_s, should_stop=stop)
        for shard, outcome in rows:
            log.debug("shard %d: %s", shard, outcome)
            if outcome in ("written", "stood"):
                progress.advance(layout.samples_per_shard)
    except (DakterError, KeyboardInterrupt):
        raise
    except Exception as error:
        if len(lost(shards, layout)) == before:
            raise DakterError(f"sampling actors failed before any shard was committed: {error}") from error
        log.warning("generate: the run broke off (%s); what is missing is started again", error)


def plan(settings: GenerateSettings) -> Plan:
    """What ``run`` would do."""
    corpus, ray = settings.corpus, settings.ray
    return Plan(
        reads=[f"model {settings.place('model')}"],
        computes=[
            f"{corpus.num_samples} pairs from corpus seed {corpus.seed}, less those that are committed",
            f"by {ray.generate_workers} actors of {ray.generate_cpus} CPUs and {ray.generate_gpus:g} GPUs",
        ],
        writes=[f"corpus {settings.place('corpus')}"],
    )


def show_status(settings: GenerateSettings, stop: Stop) -> Mapping[str, Any]:
    """Verb ``status``."""
    found = manifest.status(Layout.open(settings.place("corpus")))
    log.info(
        "%s: %d of %d samples committed (%d of %d shards), %d shards missing, %d of them set aside; %s",
        found["url"],
        found["num_samples"],
        found["num_samples_planned"],
        found["num_shards"],
        found["num_shards_planned"],
        found["num_shards_missing"],
        len(found["failed"]),
        f"finalised, digest {found['digest']}" if found["finalised"] else "not finalised",
    )
    for line in failure_text(found["failed"]):
        log.info("  %s", line)
    return found


def verify(settings: GenerateSettings, stop: Stop) -> Mapping[str, Any]:
    """Verb ``verify``; raises IntegrityError naming what is wrong, after writing ``<out>/stages/verify.json``."""
    start = time.monotonic()
    found = manifest.verify(Layout.open(settings.place("corpus")))
    storage.put_json(storage.join(settings.out, "stages", "verify.json"), found)
    if found["uncommitted"]:
        log.info("%d objects belong to shards without a record (work in hand or given up)", len(found["uncommitted"]))
    if found["faults"]:
        lines = [manifest.describe(fault) for fault in found["faults"]]
        raise IntegrityError(f"{found['url']}: {len(lines)} faults:\n{listing(lines, most=100)}")
    seconds = duration(time.monotonic() - start)
    log.info("%s: %d shards, every byte as recorded, in %s", found["url"], found["num_shards"], seconds)
    return found


JOB = Job(
    "generate",
    "Generate image and soft-label pairs with the joint model into a corpus.",
    settings=GenerateSettings,
    run=run,
    plan=plan,
    verbs={
        "status": ("where the corpus stands, from storage alone", show_status),
        "verify": ("hash and decode every committed shard anew; names what is missing, altered or foreign", verify),
    },
)

if __name__ == "__main__":
    from jobs.generate import JOB  # its importable self: classes in __main__ do not pickle for Ray

    raise SystemExit(main(JOB))
