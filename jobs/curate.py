"""Curate: an accept-list over a corpus, by rules whose limits come from real images of train and val, and by quotas.

Writes below ``paths.curation``: ``measures-<digest>/``, those of each shard, which depend on no rule; ``gallery.html``;
and last ``accept.json``, which a reader takes (``corpus/accept.py``) and the distill job too (``paths.accept``). The
corpus is never changed. Test is never read.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from typing import Any

from dakter import storage
from dakter.config import differences, digest_json
from dakter.corpus.reader import CorpusReader
from dakter.data.tiles import TileCorpus
from dakter.errors import ConflictError, DataError, listing
from dakter.evaluate.curation import check_quotas, curate, failing_val
from dakter.evaluate.gates import CurateConfig
from dakter.evaluate.measures import VERSION
from dakter.report.curation_page import build
from jobs._cli import Job, JobSettings, Plan, Stop, main
from jobs._curation import Labeller, check_fit, gauge_of, measure_corpus, pictures_of, real_limits

log = logging.getLogger("dakter.jobs.curate")
_ACCEPT = "accept.json"


class CurateSettings(JobSettings):
    """Sections that curation reads."""

    curate: CurateConfig = CurateConfig()


def run(settings: CurateSettings, stop: Stop) -> dict[str, Any]:
    """Write the accept-list, or say that it stands; that of another corpus or of other rules is refused."""
    config, folder = settings.curate, settings.place("curation")
    tiles = TileCorpus.open(settings.place("tiles"))
    reader = CorpusReader(settings.place("corpus"), threads=config.threads)
    table = tiles.manifest.class_table
    check_fit(reader, tiles)
    check_quotas(config, table.names)
    if not reader.num_samples:
        raise DataError(f"{reader.url}: no committed sample; run jobs/generate.py first")
    label = None if config.agreement is None else Labeller(settings.place("model"), table, config)
    identity = {
        "identity_digest": digest_json(reader.identity),
        "corpus_digest": reader.digest,
        "tiles_digest": tiles.manifest.digest,
        "label_model_digest": label and label.digest,
        "settings": config.decisive(),
    }
    standing = _standing(folder, identity)
    if standing is not None:
        return {**_figures(standing, folder), "already_done": True}
    storage.check_writable(folder)
    gauge = gauge_of(config, tiles, label)
    bounds, val = real_limits(config, gauge, tiles, reader.num_samples)
    measures = storage.join(folder, f"measures-{_measures_digest(identity, config)}")
    indices, measured = measure_corpus(reader, gauge, measures, stop, config.threads)
    found = curate(config, measured, bounds, indices, table.names)
    failing = failing_val(config, val, bounds)
    document = {**identity, "val_share_failing": failing, **found.to_json(table.names)}
    shown = pictures_of(found, reader, tiles.read("train"), config.pictures)
    storage.put(storage.join(folder, "gallery.html"), build(document, shown, table).encode())
    with contextlib.suppress(FileExistsError):
        storage.put_json_new(storage.join(folder, _ACCEPT), document)
    _standing(folder, identity)  # another run may have been first
    figures = _figures(document, folder)
    log.info("curate: %d of %d samples accepted", figures["num_accepted"], figures["num_samples"])
    log.info("curate: the rules would turn away %.1f %% of the val images", 100 * failing["any"])
    for rule, row in document["counts"].items():
        log.info("curate: %-10s %d fail it, %d of them no other rule", rule, row["fails"], row["alone"])
    log.info("gallery: %s", figures["gallery"])
    return figures


def _measures_digest(identity: Mapping[str, Any], config: CurateConfig) -> str:
    """Of what measures depend on; of a corpus that was extended those of the earlier shards still hold."""
    label = {key: getattr(config, key) for key in ("agreement_by", "evaluations", "seed")}
    keys = ("identity_digest", "tiles_digest", "label_model_digest")
    digests = {key: identity[key] for key in keys}
    return digest_json({"version": VERSION, **digests, **(label if identity["label_model_digest"] else {})})[:16]


def _standing(folder: str, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """The accept-list in ``folder`` if it is this one, None if there is none; else ConflictError."""
    where = storage.join(folder, _ACCEPT)
    if not storage.exists(where):
        return None
    found = dict(storage.read_json(where))
    different = differences(identity, {key: found.get(key) for key in identity})
    if different:
        raise ConflictError(
            f"{where}: another accept-list stands here:\n{listing(different)}\n"
            "Go back to those settings, remove it (measures are kept), or choose another folder (paths.curation)"
        )
    return found


def _figures(document: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """What the stage record keeps."""
    return {
        "accept": storage.join(folder, _ACCEPT),
        "gallery": storage.join(folder, "gallery.html"),
        "num_samples": document["num_samples"],
        "num_accepted": document["num_accepted"],
        "rejected_first_by": {rule: row["first"] for rule, row in document["counts"].items()},
        "val_share_failing": document["val_share_failing"]["any"],
        "share_containing": {name: row["accepted"] for name, row in document["share_containing"].items()},
        "corpus_digest": document["corpus_digest"],
        "tiles_digest": document["tiles_digest"],
    }


def plan(settings: CurateSettings) -> Plan:
    """For ``--dry-run``."""
    config, folder = settings.curate, settings.place("curation")
    model = [] if config.agreement is None else [f"model {settings.place('model')}: p(y | x) of every sample"]
    quotas = [f"samples that contain {name}: at least {share:g} of all" for name, share in config.quotas.items()]
    return Plan(
        reads=[
            f"tiles {settings.place('tiles')}: train and val",
            f"corpus {settings.place('corpus')}: every committed shard, {config.threads} at a time",
            *model,
        ],
        computes=[f"rules {', '.join(config.rules) or 'none'}, with limits from train and val", *quotas],
        writes=[
            f"{folder}/measures-<digest>/<shard>.npz: kept, so that a stopped run, or one by other rules, goes on",
            f"{folder}/gallery.html",
            f"{folder}/accept.json: last",
        ],
    )


JOB = Job(
    "curate",
    "Choose the samples of a corpus that training shall see: rules with limits from real images, and class quotas.",
    CurateSettings,
    run,
    plan,
)

if __name__ == "__main__":
    from jobs.curate import JOB  # its importable self: classes in __main__ do not pickle for Ray

    raise SystemExit(main(JOB))
