"""The verbs of the jobs that make a corpus: quote, status, verify, regenerate, finalise, gallery."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from dakter import storage
from dakter.config import Config, setting
from dakter.corpus import manifest, quote, status
from dakter.corpus.layout import Layout
from dakter.corpus.regenerate import regenerate as draw_again
from dakter.corpus.wording import is_labelled
from dakter.errors import ConflictError, IntegrityError, listing
from dakter.progress import duration
from dakter.report.corpus_page import write_gallery
from jobs._cli import Stop, Verb, versions
from jobs._generation import GenerateSettings, begin, finish, make
from jobs._shards import SamplerFactory

log = logging.getLogger("dakter.jobs.generate")

# Commit records that a quote is told from, the latest ones.
_QUOTED_FROM = 64


class QuoteOptions(Config):
    """Of ``quote``."""

    canary: int = setting(
        4, "shards to measure by, at least one a worker; those that stand count, missing ones are made", ge=2
    )


class VerifyOptions(Config):
    """Of ``verify``."""

    deep: bool = setting(False, "decode every array and hash it too")
    repair: bool = setting(False, "make the shards at fault again, just those")


class RegenerateOptions(Config):
    """Of ``regenerate``."""

    sample: int = setting(0, "index of the sample in the corpus", ge=0)


def tell_quote(settings: GenerateSettings, stop: Stop, options: QuoteOptions) -> dict[str, Any]:
    """Measure by a few real shards, which stay part of the corpus, and tell the whole from them."""
    return quote_with(settings, stop, options, settings.factory())


def quote_with(
    settings: GenerateSettings, stop: Stop, options: QuoteOptions, factory: SamplerFactory
) -> dict[str, Any]:
    """``tell_quote`` with any sampler."""
    layout, wanted, todo = begin(settings, factory)
    if not todo:
        whole = manifest.read_manifest(layout)
        compared = quote.compare(layout, whole) if whole else None
        for line in quote.comparison_lines(compared) or ["the whole is made, and no quote was told for it before"]:
            log.info("%s", line)
        return {"num_shards": wanted, "quote_against_actual": compared}
    canary = min(wanted, max(options.canary, settings.ray.generate_workers))
    missing = todo[: max(0, canary - (wanted - len(todo)))]
    if missing:
        log.info("quote: %d shards are made to measure by; they stay part of the corpus", len(missing))
        make(settings, stop, factory, layout, missing, wanted)
    told = quote.estimate(
        layout,
        manifest.records(layout, layout.committed()[-_QUOTED_FROM:]),
        shards=wanted,
        workers=settings.ray.generate_workers,
        gpus=settings.ray.generate_gpus,
        budget=settings.budget,
    )
    told["hardware"] = settings.machine
    quote.put(layout, told)
    for line in quote.lines(told):
        log.info("%s", line)
    return told


def show_status(settings: GenerateSettings, stop: Stop) -> Mapping[str, Any]:
    """Print where the corpus stands."""
    found = status.status(Layout.open(settings.url))
    for line in status.lines(found):
        log.info("%s", line)
    return found


def verify(settings: GenerateSettings, stop: Stop, options: VerifyOptions) -> dict[str, Any]:
    """Raise IntegrityError naming what is wrong and was not mended, after writing ``<out>/stages/verify.json``.

    Of another corpus than the generated one the record is ``verify-<stage>.json``.
    """
    wanted = settings_of(Layout.open(settings.url), settings)
    return verify_with(wanted, stop, options, wanted.factory())


def verify_with(
    settings: GenerateSettings, stop: Stop, options: VerifyOptions, factory: SamplerFactory
) -> dict[str, Any]:
    """``verify`` with any sampler for the repair."""
    start = time.monotonic()
    layout = Layout.open(settings.url)
    found = manifest.verify(layout, deep=options.deep)
    repaired: list[int] = []
    if found["faults"] and options.repair:
        log.warning("verify: %d faults:\n%s", len(found["faults"]), _listed(found))
        repaired = manifest.repair(layout, found["faults"])
        if repaired:
            make(settings, stop, factory, layout, repaired, layout.planned_shards())
        found = manifest.verify(layout, deep=options.deep)
        if not found["faults"] and manifest.read_manifest(layout):
            finish(settings, layout)
    found["repaired"] = repaired
    name = "verify" if settings.stage == GenerateSettings.stage else f"verify-{settings.stage}"
    storage.put_json(storage.join(settings.out, "stages", f"{name}.json"), found)
    if found["uncommitted"]:
        log.info("%d objects belong to shards without a record (work in hand or given up)", len(found["uncommitted"]))
    if found["faults"]:
        raise IntegrityError(f"{found['url']}: {len(found['faults'])} faults:\n{_listed(found)}")
    seconds = duration(time.monotonic() - start)
    log.info(
        "%s: %d shards, every byte%s as recorded, in %s%s",
        found["url"],
        found["num_shards"],
        " and every decoded array" if options.deep else "",
        seconds,
        f"; made again: {repaired}" if repaired else "",
    )
    return found


def regenerate(settings: GenerateSettings, stop: Stop, options: RegenerateOptions) -> dict[str, Any]:
    """Draw a sample again, with the settings that the corpus itself records."""
    wanted = settings_of(Layout.open(settings.url), settings)
    return regenerate_with(wanted, options, wanted.factory())


def regenerate_with(settings: GenerateSettings, options: RegenerateOptions, factory: SamplerFactory) -> dict[str, Any]:
    """``regenerate`` with any sampler."""
    layout = Layout.open(settings.url)
    here = {"device": settings.machine, "versions": versions()}
    found = draw_again(layout, factory(), options.sample, here)
    log.info(
        "%s: sample %d drawn again with its micro-batch: %s",
        layout.url,
        options.sample,
        "every byte equal" if found["equal"] else "not byte-equal (another device or release), within tolerance",
    )
    return found


def finalise(settings: GenerateSettings, stop: Stop) -> dict[str, Any]:
    """Write the manifest over the shards that are committed."""
    found = finish(settings, Layout.open(settings.url))
    return {key: value for key, value in found.items() if key != "ranges"}


def gallery(settings: GenerateSettings, stop: Stop) -> dict[str, Any]:
    """Write the corpus's page."""
    page = write_gallery(settings.url)
    log.info("gallery: %s", page)
    return {"gallery": page}


def settings_of(layout: Layout, settings: GenerateSettings) -> GenerateSettings:
    """``settings`` with everything that the identity of the corpus fixes taken from there."""
    identity, sampler = layout.identity, layout.identity["sampler"]
    if is_labelled(identity) != (settings.stage == "label"):
        job = "label" if is_labelled(identity) else "generate"
        raise ConflictError(f"{layout.url}: a corpus of jobs/{job}.py stands here; say jobs/{job}.py, or mend paths")
    corpus = {
        "seed": identity["seed"],
        "samples_per_shard": identity["samples_per_shard"],
        "compression_level": identity["compression_level"],
        "num_samples": layout.samples_before(layout.planned_shards()),
    }
    update = {
        "corpus": settings.corpus.model_copy(update=corpus),
        "ray": settings.ray.model_copy(update={"generate_cpus": sampler["threads"]}),
    }
    return settings.of_sampler(sampler, layout.place("identity.json")).model_copy(update=update)


def _listed(found: Mapping[str, Any]) -> str:
    return listing([manifest.describe(fault) for fault in found["faults"]], most=100)


VERBS = {
    "quote": Verb(
        "make a few shards, then tell hours, bytes and money of the whole with a range; once the whole is made, "
        "hold the quote against it",
        tell_quote,
        QuoteOptions,
    ),
    "status": Verb("where the corpus stands, from storage alone", show_status),
    "verify": Verb(
        "hash every stored byte anew; names what is missing, truncated, altered, duplicated or foreign",
        verify,
        VerifyOptions,
    ),
    "regenerate": Verb(
        "draw one sample's micro-batch again and compare it with what is stored",
        regenerate,
        RegenerateOptions,
    ),
    "finalise": Verb("write the manifest over what is committed now, be it the whole or not", finalise),
    "gallery": Verb("write gallery.html beside the corpus: what it is, and pairs of it to look at", gallery),
}
