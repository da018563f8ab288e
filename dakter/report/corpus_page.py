"""The gallery of a corpus: one ``gallery.html`` that says what the corpus is and shows some of its pairs.

Which pairs are shown follows from the corpus alone: some spread evenly over it, for each class but the commonest the
one that holds most of it, and those most in doubt. The last two kinds are looked for in the shards that stand out by
their commit records, so that the page of a large corpus reads about a dozen shards.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dakter import storage
from dakter.corpus import croissant, manifest
from dakter.corpus.attributes import NOT_STATED, model_digest
from dakter.corpus.layout import Layout
from dakter.corpus.reader import CorpusReader
from dakter.corpus.wording import DIGITAL_SOURCE_TYPE, wording
from dakter.errors import DataError
from dakter.report import figures, page, pairs, pictures
from dakter.report.figures import Curve
from dakter.report.pairs import Pair

KEY = "gallery.html"
_NUM_SPREAD, _NUM_DOUBTFUL = 8, 4
# The class whose probability is shown; a table without it shows the colours of all classes mixed.
_FOCUS = "oil spill"


def write_gallery(corpus_url: str, where: str | None = None) -> str:
    """Write the gallery of the committed shards of a corpus, finalised or not; returns the page's URL.

    Args:
        where: URL of the page; None: ``gallery.html`` in the corpus.

    Raises:
        DataError: no corpus stands there, or no shard of it is committed.
        IntegrityError: a shard that is shown is damaged.
    """
    where = where or storage.join(corpus_url, KEY)
    storage.put(where, build(corpus_url).encode())
    return where


def build(corpus_url: str) -> str:
    """The page as HTML text; the same corpus gives the same text. Raises as ``write_gallery``."""
    reader, layout = CorpusReader(corpus_url), Layout.open(corpus_url)
    if not reader.shards:
        raise DataError(f"{corpus_url}: no shard is committed yet, so there is nothing to show; generate some samples")
    found = manifest.records(layout, reader.shards)
    table = reader.content.class_table
    shares = np.array([record["class_shares"] for record in found])
    mean = np.average(shares, axis=0, weights=[record["count"] for record in found])
    date = croissant.newest(found)
    chooser = _Chooser(reader, found)
    focus = table.names.index(_FOCUS) if _FOCUS in table.names else None
    third = "soft label" if focus is None else f"p({_FOCUS})"
    planned = layout.planned_shards()
    return page.render(
        "gallery.html",
        date=date.strftime("%Y-%m-%d") if date else "",
        facts=_facts(reader, found),
        words=wording(reader.identity),
        partial="" if len(found) >= planned else f"{len(found)} of {planned} shards are committed so far",
        classes=page.legend(table),
        shares=_shares(table.names, mean),
        entropy=_entropy(found),
        rows=list(zip(table.names, *(100 * part for part in (mean, shares.min(0), shares.max(0))), strict=True)),
        most_nats=f"{math.log(len(table)):.2f}",
        spread=_gallery(chooser.spread(focus), reader, third),
        rare=_gallery(chooser.rare(), reader, "p(class)"),
        doubtful=_gallery(chooser.doubtful(focus), reader, third),
        about=_about(reader, layout.attributes()),
    )


class _Chooser:
    """Picks pairs of a corpus by its commit records."""

    def __init__(self, reader: CorpusReader, records: Sequence[Mapping[str, Any]]):
        self._reader, self._records = reader, records
        # Groups that follow each other often look into the same shard; one is up to 100 MB.
        self._read = functools.lru_cache(maxsize=2)(reader.read_shard)

    def spread(self, focus: int | None) -> Iterator[Pair]:
        """Pairs spread evenly over the committed shards."""
        size, count = self._reader.samples_per_shard, self._reader.num_samples
        for position in np.unique(np.linspace(0, count - 1, min(_NUM_SPREAD, count)).astype(int)):
            yield self._pair(self._reader.shards[position // size], int(position % size), focus)

    def rare(self) -> Iterator[Pair]:
        """For each class but the commonest, rarest first: the pair that holds most of it."""
        shares = np.array([record["class_shares"] for record in self._records])
        names = self._reader.content.class_table.names
        for k in np.argsort(shares.mean(axis=0), kind="stable")[:-1]:
            record = self._records[int(shares[:, k].argmax())]
            if record["class_shares"][k] <= 0:
                continue
            soft = self._read(record["shard"])[1]
            yield from self._best(record["shard"], soft[:, k].mean(axis=(1, 2)), 1, int(k), f"{names[k]}, ")

    def doubtful(self, focus: int | None) -> Iterator[Pair]:
        """Pairs of the highest mean entropy within the shards of the highest mean entropy."""
        order = np.argsort([-record["entropy_nats"] for record in self._records], kind="stable")[:_NUM_DOUBTFUL]
        for at in order:
            shard = self._records[int(at)]["shard"]
            soft = self._read(shard)[1]
            # One sample at a time: a whole shard of floats would take gigabytes.
            entropies = [pictures.entropy_nats(label / np.float32(255)).mean() for label in soft]
            yield from self._best(shard, np.array(entropies), -(-_NUM_DOUBTFUL // len(order)), focus)

    def _best(self, shard: int, scores: np.ndarray, wanted: int, focus: int | None, prefix: str = "") -> Iterator[Pair]:
        for row in np.argsort(-scores, kind="stable")[:wanted]:
            yield self._pair(shard, int(row), focus, prefix)

    def _pair(self, shard: int, row: int, focus: int | None, prefix: str = "") -> Pair:
        images, soft = self._read(shard)
        return Pair(images[row], soft[row], f"{prefix}sample {shard * self._reader.samples_per_shard + row}", focus)


def _gallery(found: Iterator[Pair], reader: CorpusReader, third: str) -> dict[str, Any]:
    return {"items": pairs.rows(found, reader.content.class_table)[0], "heads": pairs.heads(third)}


def _facts(reader: CorpusReader, found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    content = reader.content
    objects = [entry for record in found for entry in record["objects"].values()]
    return {
        "num_samples": reader.num_samples,
        "num_shards": len(found),
        "size": f"{content.height_px} × {content.width_px}",
        "bands": ", ".join(content.bands),
        "num_classes": len(content.class_table),
        "table": content.class_table.name,
        "entropy": float(np.mean([record["entropy_nats"] for record in found])),
        "megabytes": sum(entry["bytes"] for entry in objects) / 1e6,
        "digest": reader.digest,
    }


def _shares(names: Sequence[str], mean: np.ndarray) -> Any:
    rows = [(name, float(share), f"{share:.3g}\u202f%") for name, share in zip(names, 100 * mean, strict=True)]
    return figures.bars("Mean probability of each class", rows, x_label="% of all pixels")


def _entropy(found: Sequence[Mapping[str, Any]]) -> Any:
    points = [(float(record["first"]), float(record["entropy_nats"])) for record in found]
    return figures.curves(
        "Mean entropy of each shard, nats a pixel", [Curve("entropy", points)], x_label="first sample"
    )


def _about(reader: CorpusReader, attributes: Mapping[str, Any]) -> dict[str, Any]:
    told = attributes["provenance"]
    low, high = reader.content.value_range
    listed = [row["shard"] for row in reader.manifest["ranges"]] if reader.manifest else []
    words = wording(reader.identity)
    data, tiles = ("training data", "training tiles") if words.synthetic else ("images", "tiles")
    return {
        data: told.get("source", NOT_STATED),
        "their licence": told.get("licence", NOT_STATED),
        "their citation": told.get("citation", NOT_STATED),
        "made by": attributes["generator"],
        **({"digital source type": DIGITAL_SOURCE_TYPE} if words.synthetic else {}),
        "raw values": f"{low:g} to {high:g}",
        "seed": reader.identity["seed"],
        "samples per shard": reader.samples_per_shard,
        "corpus digest": reader.digest,
        "model digest": model_digest(reader.identity),
        f"{tiles} digest": told.get("tiles_digest", NOT_STATED),
        "finalised": listed == list(reader.shards),
    }
