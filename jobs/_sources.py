"""What the distilled arm has beside real labelled pairs: generated ones, real images with a model's labels, or both."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from dakter.config import digest_json
from dakter.corpus.reader import CorpusReader
from dakter.corpus.wording import is_labelled
from dakter.data.tiles import TileCorpus
from dakter.errors import ConfigError, ConflictError, DataError
from dakter.rng import derive_seed
from dakter.students.mix import MixedStudentsConfig
from dakter.students.streams import SyntheticStream, array_stream, mixed_stream

log = logging.getLogger("dakter.jobs.distill")

_GENERATED, _LABELLED = "students/synthetic", "students/unlabelled"


@dataclass(frozen=True)
class Source:
    """Pairs of one corpus, as workers get them.

    Attributes:
        url: the corpus.
        pairs: images and soft labels, decoded; None: too large, workers read the corpus shard by shard.
        accept: URL of the accept-list that a corpus read by its URL is kept to; None: every sample.
        name: of its random stream.
    """

    url: str
    pairs: tuple[np.ndarray, np.ndarray] | None
    accept: str | None = None
    name: str = _GENERATED

    def stream(self, seed: int) -> SyntheticStream:
        """Its samples in an order drawn from (seed, name)."""
        if self.pairs is not None:
            return array_stream(*self.pairs, seed, self.name)
        # Generated pairs keep the order that they had when there was no other source.
        return shard_stream(self.url, seed if self.name == _GENERATED else derive_seed(seed, self.name), self.accept)


def share_of(students: MixedStudentsConfig, accept: str | None, *, with_labelled: bool) -> float:
    """The share of real images, see ``MixedStudentsConfig.share``, and its fit to the accept-list of generated pairs.

    Raises:
        ConfigError: a share without such images, or an accept-list over generated pairs that are not used.
    """
    share = students.share(with_labelled=with_labelled)
    if share == 1 and accept:
        raise ConfigError(
            f"paths.accept is {accept} with students.unlabelled_share 1, by which no generated pair is used; leave "
            "one of them out"
        )
    return share


def stream_of(sources: tuple[tuple[Source, float], ...], seed: int) -> SyntheticStream:
    """One stream of all sources, in proportion to their weights."""
    if len(sources) == 1:
        return sources[0][0].stream(seed)
    return mixed_stream([(source.stream(seed), weight) for source, weight in sources])


def shard_stream(url: str, seed: int, accept: str | None = None) -> SyntheticStream:
    """A corpus read shard by shard; walking on costs nothing, a jump opens it anew at that batch."""
    reader = CorpusReader(url, accept=accept)
    state: dict[str, Any] = {"next": None}

    def draw(step: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        if state["next"] != (step, count):
            state["batches"] = reader.batches(count, seed, start_batch=step)
        state["next"] = (step + 1, count)
        batches: Iterator[tuple[np.ndarray, np.ndarray]] = state["batches"]
        return next(batches)

    return draw


def in_memory(reader: CorpusReader, most_mb: int) -> tuple[np.ndarray, np.ndarray] | None:
    """The accepted samples, decoded, if they are few enough, else None: workers then read it shard by shard."""
    size_mb = sum(math.prod(shape) for shape in reader.content.shapes(reader.num_accepted).values()) / 2**20
    if size_mb > most_mb:
        log.info("%s: %.0f MB decoded, more than students.corpus_memory_mb; read shard by shard", reader.url, size_mb)
        return None
    return reader.sample(reader.indices)


@dataclass(frozen=True)
class Mix:
    """The corpora of the distilled arm.

    Attributes:
        generated: generated pairs; None: not used.
        labelled: real images with a model's labels; None: not given.
        share: of the rows that are no real labelled pairs, those of ``labelled``.
        accept: URL of the accept-list that ``generated`` is kept to.
    """

    generated: CorpusReader | None
    labelled: CorpusReader | None
    share: float
    accept: str | None

    @classmethod
    def open(
        cls, corpus: str, accept: str | None, labelled: str | None, students: MixedStudentsConfig, tiles: TileCorpus
    ) -> Self:
        """Open what is used.

        Args:
            corpus, labelled: URLs of the generated corpus, and of the one of real images if there is one.
            tiles: those that the sweep is about.

        Raises:
            ConfigError: a share without ``labelled``, or an accept-list over generated pairs that are not used.
            ConflictError: one corpus is of the other kind, or the labelled one is of other tiles.
            DataError: no corpus stands there.
        """
        share = share_of(students, accept, with_labelled=labelled is not None)
        made = cls(
            None if share == 1 else CorpusReader(corpus, accept=accept),
            None if labelled is None else CorpusReader(labelled),
            share,
            accept,
        )
        made._check(tiles)
        return made

    def _check(self, tiles: TileCorpus) -> None:
        if self.generated and is_labelled(self.generated.identity):
            raise ConflictError(
                f"{self.generated.url}: holds real images that jobs/label.py labelled; expected generated pairs. Give "
                "it as paths.labelled, with students.unlabelled_share 1 if there shall be no others"
            )
        if not self.labelled:
            return
        if not is_labelled(self.labelled.identity):
            raise ConflictError(
                f"{self.labelled.url}: holds generated pairs; expected real images that jobs/label.py labelled. Mend "
                "paths.labelled"
            )
        theirs, ours = self.labelled.identity["sampler"]["tiles_digest"], tiles.manifest.digest
        if theirs != ours:
            raise ConflictError(
                f"{self.labelled.url}: labels tiles of digest {theirs[:16]}; {tiles.url} has {ours[:16]}. Label these "
                "tiles with jobs/label.py, to another place (paths.labelled), or mend paths.tiles"
            )
        if self.generated and self._model(self.generated) != self._model(self.labelled):
            log.warning("%s and %s were made by different models", self.generated.url, self.labelled.url)

    @staticmethod
    def _model(reader: CorpusReader) -> Any:
        return reader.identity["sampler"].get("model_digest")

    def identity(self) -> dict[str, Any]:
        """Of a sweep, what tells its corpora; one made before there were labelled ones is one without."""
        first = self.generated or self.labelled
        assert first is not None
        return {
            "corpus_digest": self.generated and self.generated.digest,
            "model_digest": self._model(first),
            # By what it says, not where it stands; a sweep made before there were accept-lists is one without.
            "accept_digest": digest_json(first.indices.tolist()) if self.accept else None,
            **({"labelled_digest": self.labelled.digest} if self.labelled and self.share else {}),
        }

    def students(self, students: MixedStudentsConfig) -> dict[str, Any]:
        """The settings of the students as the sweep keeps them: with the share that was meant."""
        return {**students.dump(), **({"unlabelled_share": self.share} if self.labelled else {})}

    def check_samples(self) -> None:
        """Raise DataError if a corpus that is used has no sample."""
        for reader, job in ((self.generated, "generate"), (self.labelled if self.share else None, "label")):
            if reader and reader.num_accepted == 0:
                raise DataError(
                    f"{reader.url}: no committed and accepted sample; run jobs/{job}.py first, or accept more"
                )

    def sources(self, most_mb: int) -> tuple[tuple[Source, float], ...]:
        """What workers draw from, with weights above 0; corpora of up to ``most_mb`` decoded are held in memory."""
        found = []
        if self.generated:
            pairs = in_memory(self.generated, most_mb)
            found.append((Source(self.generated.url, pairs, self.accept), 1 - self.share))
        if self.labelled and self.share:
            pairs = in_memory(self.labelled, most_mb)
            found.append((Source(self.labelled.url, pairs, name=_LABELLED), self.share))
        return tuple(found)

    def inputs(self) -> list[tuple[str, str, str]]:
        """(name, URL, digest) of each corpus that is used, for the lineage of a run."""
        used = (("synthetic", self.generated), ("labelled", self.labelled if self.share else None))
        return [(name, reader.url, reader.digest) for name, reader in used if reader]

    def figures(self) -> dict[str, float]:
        """Of the stage record, what tells of labelled real images; empty without them."""
        if not self.labelled:
            return {}
        return {"num_labelled_real": self.labelled.num_samples, "unlabelled_share": self.share}
