"""The label maps that a corpus draws images for: masks of training tiles, and what a model made of unlabelled ones."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dakter import config
from dakter.corpus.content import Content
from dakter.corpus.reader import CorpusReader
from dakter.corpus.wording import is_labelled
from dakter.data.tiles import TileCorpus
from dakter.diffusion.label_maps import Candidates, MapPool, RenderConfig, kinds_of
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

    def open(self, content: Content, *, seed: int, told: bool, turned: bool) -> tuple[MapPool, dict[str, str]]:
        """The pool of maps for pairs of ``content``, and the digests of what it was taken from, by name.

        ``told``: their network is told descriptors; ``turned``: it learned from turned images.

        Raises:
            ConfigError: a quota that no map can meet; see ``Candidates``.
            ConflictError: tiles or labelled tiles have other classes, bands, size or range of values.
            DataError: nothing stands there, or no map has a labelled pixel.
        """
        names, digests = content.class_table.names, dict[str, str]()
        found = Candidates(self.config, names, seed, _describe if told else None)
        if self.config.maps in ("masks", "both"):
            tiles = TileCorpus.open(self.tiles)
            _check_fit(self.tiles, differences_of(content, tiles.manifest))
            train = tiles.read("train")
            found.offer(train.images, train.labels, "masks")
            digests["tiles_digest"] = tiles.manifest.digest
        if self.config.maps in ("labelled", "both"):
            reader = CorpusReader(self.labelled)
            if not is_labelled(reader.identity):
                raise DataError(
                    f"{self.labelled}: a generated corpus stands here; expected one of jobs/label.py, whose images are "
                    "real: mend paths.labelled, or set render.maps masks"
                )
            _check_fit(self.labelled, [] if reader.content == content else ["what a pair is"])
            for shard in reader.shards:  # one at a time: soft labels of all would be many times their maps
                images, soft = reader.read_shard(shard)
                found.offer(images, likeliest(soft), "labelled")
            digests["labelled_digest"] = reader.digest
        return found.pool(turned=turned), digests


def likeliest(soft: np.ndarray) -> np.ndarray:
    """The likeliest class of each pixel of stored soft labels ``(N, K, H, W)``, uint8 ``(N, H, W)``."""
    return np.stack([of_one.argmax(axis=0).astype(np.uint8) for of_one in soft])


def _describe(images: np.ndarray) -> np.ndarray:
    from dakter.diffusion.network import describe  # with all of diffusers, where it is really wanted

    return np.asarray(describe(to_model(images)))


def _check_fit(url: str, different: list[str]) -> None:
    if different:
        raise ConflictError(
            f"{url} does not fit the model: {'; '.join(different)}. Expected label maps of such tiles as it was "
            "trained on: mend paths, or render.maps"
        )


def outcome(url: str, render: Mapping[str, Any]) -> dict[str, Any]:
    """Of the first samples of a corpus at ``url``: by class of its quotas how many were drawn for a label map that
    holds it (``drawn_for``), and how many of these have a soft label that still does (``held``).

    ``render``: what its identity says of label maps.
    """
    reader, asked = CorpusReader(url), settings_of(render, url)
    indices = reader.indices[:_LOOKED_AT]
    classes = likeliest(reader.sample(indices)[1])
    kinds, found = kinds_of(asked.shares, int(reader.identity["seed"]), indices), {}
    for kind, name in enumerate(asked.quotas):
        own = classes[kinds == kind] == reader.content.class_table.index(name)
        held = int((own.sum(axis=(1, 2)) >= asked.contains_px).sum())
        found[name] = {"share": asked.quotas[name], "drawn_for": len(own), "held": held}
        log.info(
            "of the first %d samples %d were drawn for label maps with %s; the soft labels of %d of these hold it",
            len(indices),
            len(own),
            name,
            held,
        )
    return {"looked_at": len(indices), "classes": found}


def settings_of(render: Mapping[str, Any], where: str) -> RenderConfig:
    """Of what an identity says of label maps, the settings; the rest are digests."""
    own = {key: value for key, value in render.items() if key in RenderConfig.model_fields}
    return config.load(RenderConfig, own, where=where)
