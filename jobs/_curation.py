"""Measuring a corpus and the real images beside it, and what the page shows of the outcome."""

from __future__ import annotations

import logging
import threading

import numpy as np
import torch

from dakter import storage
from dakter.corpus.manifest import each
from dakter.corpus.reader import CorpusReader
from dakter.data.tiles import Split, TileCorpus
from dakter.diffusion.sampler import SamplerConfig
from dakter.errors import ConflictError, DataError
from dakter.evaluate.curation import QUOTAS, Curation
from dakter.evaluate.gates import CurateConfig, Limit, limits
from dakter.evaluate.measures import Gauge, Measured
from dakter.progress import Progress
from dakter.report.curation_page import ACCEPTED, Shown
from dakter.schema import ClassTable, to_model
from jobs._cli import Stop
from jobs._fit import differences_of
from jobs._model_sampler import PlacedModel

log = logging.getLogger("dakter.jobs.curate")


class Labeller:
    """p(y | x) of a trained joint model as class maps; see ``evaluate.measures.Label``.

    Raises:
        ConfigError: at the first call, the model was trained in mode joint. ConflictError: it knows other classes.
    """

    def __init__(self, url: str, table: ClassTable, config: CurateConfig):
        self._model = PlacedModel(url, torch.get_num_threads(), "cuda" if torch.cuda.is_available() else "cpu")
        if (own := self._model.content.class_table) != table:
            raise ConflictError(
                f"{url}: its classes are {', '.join(own.names)}; expected those of the tiles, "
                f"{', '.join(table.names)}. Mend paths.model or paths.tiles"
            )
        self.digest = self._model.digest
        self._config, self._lock = config, threading.Lock()

    def __call__(self, images: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        with self._lock:  # torch has its own threads; shards are measured by several
            soft = self._model.pipeline.label(
                to_model(images), self._config.evaluations, self._config.seed, numbers, SamplerConfig(precision="fp32")
            )
        return np.asarray(soft.argmax(1), np.uint8)


def check_fit(reader: CorpusReader, tiles: TileCorpus) -> None:
    """Raise ConflictError unless corpus and tiles have the same classes, bands, size and range of values."""
    if differences := differences_of(reader.content, tiles.manifest):
        raise ConflictError(
            f"{reader.url} and {tiles.url} do not fit: {'; '.join(differences)}. Expected a corpus of a model that was "
            "trained on these tiles: mend paths.corpus or paths.tiles"
        )


def gauge_of(config: CurateConfig, tiles: TileCorpus, label: Labeller | None) -> Gauge:
    """What samples are measured by: the training images."""
    manifest, train = tiles.manifest, tiles.read("train")
    names = manifest.class_table.names
    return Gauge.of(train.images, names, manifest.bands, label, config.agreement_by)


def real_limits(
    config: CurateConfig, gauge: Gauge, tiles: TileCorpus, num_samples: int
) -> tuple[dict[str, Limit], Measured]:
    """Limits from train and val, and the measures of val; where no real image has a measure nothing is asked."""
    train, val = tiles.read("train"), tiles.read("val")
    if not len(val.images):
        raise DataError(f"{tiles.url}: val holds no image; expected some, since limits are taken from train and val")
    log.info("curate: limits from %d images of train and %d of val", len(train.images), len(val.images))
    measured = gauge.measure(val.images, val.labels, np.arange(len(val.images)))
    texture = gauge.texture(train.images, train.labels)
    found = limits(config, texture, measured.values, num_train=len(train.images), num_samples=num_samples)
    for measure, limit in found.items():
        if not limit.num_real:
            log.warning("curate: no real image has the measure %s, so nothing is asked of it", measure)
    return found, measured


def measure_corpus(
    reader: CorpusReader, gauge: Gauge, folder: str, stop: Stop, threads: int
) -> tuple[np.ndarray, Measured]:
    """Indices and measures of every committed sample; each shard's are kept in ``folder``, so that a stop costs little.

    Memory: measures of all samples, of which their small pictures are 1 KB a band, and ``threads`` decoded shards.
    """
    size = reader.samples_per_shard
    standing = set(storage.sizes(folder))

    def measure(shard: int) -> Measured:
        name = f"{shard:08d}.npz"
        if name in standing:
            return Measured.from_bytes(storage.read_bytes(storage.join(folder, name)))
        images, soft = reader.read_shard(shard)
        found = gauge.measure(images, soft.argmax(axis=1).astype(np.uint8), shard * size + np.arange(len(images)))
        storage.put(storage.join(folder, name), found.to_bytes())
        return found

    progress = Progress(log, "curate", reader.num_samples, "samples")
    parts = []
    for part in each(reader.shards, measure, threads):
        parts.append(part)
        progress.advance(len(part))
        stop.check(f"measures of {len(parts)} of {len(reader.shards)} shards are kept")
    return reader.indices, Measured.joined(parts)


def pictures_of(found: Curation, reader: CorpusReader, train: Split, most: int) -> dict[str, list[Shown]]:
    """For the page: ``most`` of the samples that each rule turned away, and of those that stay, spread evenly."""
    judgement = found.judgement
    sources = {rule: found.rejected_by(rule) for rule in (*judgement.fails, QUOTAS)}
    chosen = {rule: _spread(rows, most) for rule, rows in sources.items()}
    chosen[ACCEPTED] = _spread(np.flatnonzero(found.accepted), most)
    repeated = {int(judgement.repeats[row]) for row in chosen.get("duplicates", ())}
    rows = sorted(repeated.union(*chosen.values()))
    images, soft = reader.sample(found.indices[rows])
    at = {row: number for number, row in enumerate(rows)}

    def beside(rule: str, row: int) -> np.ndarray | None:
        if rule == "copies":
            return train.images[judgement.measured.nearest[row]]
        return images[at[int(judgement.repeats[row])]] if rule == "duplicates" else None

    def shown(rule: str, row: int) -> Shown:
        why = judgement.why(rule, row) if rule in judgement.fails else ""
        return Shown(int(found.indices[row]), images[at[row]], soft[at[row]], why, beside(rule, row))

    return {rule: [shown(rule, row) for row in some] for rule, some in chosen.items()}


def _spread(rows: np.ndarray, most: int) -> list[int]:
    places = np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(np.int64))
    return [int(row) for row in rows[places]]
