"""The label maps that a corpus draws images for: masks of training tiles, and what a model made of unlabelled ones."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np

from dakter.corpus.content import Content
from dakter.corpus.reader import CorpusReader
from dakter.corpus.wording import is_labelled
from dakter.data.tiles import TileCorpus
from dakter.diffusion.label_maps import MapPool, RenderConfig, kinds_of, some_of
from dakter.errors import ConflictError, DataError
from dakter.schema import to_model
from jobs._fit import differences_of

log = logging.getLogger("dakter.jobs.generate")

# Samples that are looked at for what became of the label maps they were drawn for.
_LOOKED_AT = 1024


@dataclass(frozen=True)
class MapSource:
    """Where label maps stand: ``tiles`` and ``labelled`` are URLs, of which ``config.maps`` says what is read."""

    config: RenderConfig
    tiles: str
    labelled: str

    def open(self, content: Content, *, seed: int, turned: bool) -> tuple[MapPool, dict[str, str]]:
        """The pool of maps for pairs of ``content``, and the digests of what it was taken from, by name.

        Raises:
            ConfigError: a quota that no map can meet; see ``MapPool.of``.
            ConflictError: tiles or labelled tiles have other classes, bands, size or range of values.
            DataError: nothing stands there, or no map has a labelled pixel.
        """
        from dakter.diffusion.network import describe  # with all of diffusers, where maps are really wanted

        parts: list[tuple[np.ndarray, np.ndarray]] = []
        digests: dict[str, str] = {}
        if self.config.maps in ("masks", "both"):
            tiles = TileCorpus.open(self.tiles)
            _check_fit(self.tiles, differences_of(content, tiles.manifest))
            train = tiles.read("train")
            at = some_of(len(train.labels), self.config.most_maps, seed, "render/masks")
            parts.append((train.images[at], train.labels[at]))
            digests["tiles_digest"] = tiles.manifest.digest
        if self.config.maps in ("labelled", "both"):
            reader = CorpusReader(self.labelled)
            if not is_labelled(reader.identity):
                raise DataError(
                    f"{self.labelled}: a generated corpus stands here; expected one of jobs/label.py, whose images are "
                    "real: mend paths.labelled, or set render.maps masks"
                )
            _check_fit(self.labelled, [] if reader.content == content else ["what a pair is"])
            at = some_of(reader.num_samples, self.config.most_maps, seed, "render/labelled")
            images, soft = reader.sample(reader.indices[at])
            parts.append((images, soft.argmax(axis=1).astype(np.uint8)))
            digests["labelled_digest"] = reader.digest
        maps = np.concatenate([labels for _, labels in parts])
        told = np.concatenate([describe(to_model(images)).numpy() for images, _ in parts])
        pool = MapPool.of(self.config, maps, told, content.class_table.names, seed=seed, turned=turned)
        return pool, digests


def _check_fit(url: str, different: list[str]) -> None:
    if different:
        raise ConflictError(
            f"{url} does not fit the model: {'; '.join(different)}. Expected label maps of such tiles as it was "
            "trained on: mend paths, or render.maps"
        )


def outcome(url: str, config: RenderConfig, seed: int) -> dict[str, Any]:
    """Of the first samples of a corpus at ``url``: by class of ``config.quotas`` how many were drawn for a label map
    that holds it (``drawn_for``), and how many of these have a soft label that still does (``held``).
    """
    reader = CorpusReader(url)
    indices = reader.indices[:_LOOKED_AT]
    classes = reader.sample(indices)[1].argmax(axis=1)
    kinds, found = kinds_of(config.shares, seed, indices), {}
    for kind, name in enumerate(config.quotas):
        own = classes[kinds == kind] == reader.content.class_table.index(name)
        held = int((own.sum(axis=(1, 2)) >= config.contains_px).sum())
        found[name] = {"share": config.quotas[name], "drawn_for": len(own), "held": held}
        log.info(
            "of the first %d samples %d were drawn for label maps with %s; the soft labels of %d of these hold it",
            len(indices),
            len(own),
            name,
            held,
        )
    return {"looked_at": len(indices), "classes": found}
