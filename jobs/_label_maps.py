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
from dakter.diffusion.softlabel import SoftLabelConfig
from dakter.errors import ConfigError, ConflictError, DataError
from dakter.evaluate.speckle import damping_db, decibels, to_gray
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


def outcome(url: str, render: Mapping[str, Any], tiles: str) -> dict[str, Any]:
    """What became of the label maps that the first samples of a corpus were drawn for, by class of its quotas.

    Args:
        url: the corpus.
        render: what its identity says of label maps.
        tiles: URL of the tiles, opened if the maps are masks of them.

    Returns:
        ``looked_at`` samples, and by class how many were ``drawn_for`` a map that holds it. Where soft labels are those
        maps (``render.label map``): by how many dB (``damping_db``, median of ``damping_images``) it is darker than the
        background around it, and in training tiles (``damping_db_train``); None where that cannot be told. Where they
        are of the image: how many still hold the class (``held``).
    """
    reader, asked = CorpusReader(url), settings_of(render, url)
    indices, table = reader.indices[:_LOOKED_AT], reader.content.class_table
    images, soft = reader.sample(indices)
    classes, train = likeliest(soft), TileCorpus.open(tiles).read("train") if "tiles_digest" in render else None
    kinds, found = kinds_of(asked.shares, int(reader.identity["seed"]), indices), dict[str, dict[str, Any]]()
    for kind, name in enumerate(asked.quotas):
        rows, k = kinds == kind, table.index(name)
        told = found[name] = {"share": asked.quotas[name], "drawn_for": int(rows.sum())}
        if asked.label == "image":
            told["held"] = int(((classes[rows] == k).sum(axis=(1, 2)) >= asked.contains_px).sum())
            line = f"the soft labels of {told['held']} hold it"
        else:
            here, count = _damping_db(images[rows], classes[rows], k)
            there = _damping_db(train.images, train.labels, k)[0] if train else None
            told |= {"damping_db": here, "damping_images": count, "damping_db_train": there}
            line = (
                f"darker than around it by {decibels(here)} in {count} of them, in training tiles by {decibels(there)}"
            )
        log.info(
            "of the first %d samples %d were drawn for label maps with %s; %s",
            len(indices),
            told["drawn_for"],
            name,
            line,
        )
    return {"looked_at": len(indices), "classes": found}


def _damping_db(images: np.ndarray, labels: np.ndarray, k: int) -> tuple[float | None, int]:
    """Median, and over how many images; the background is around the other classes."""
    found = damping_db(to_gray(images), labels, k) if k else np.empty(0)
    return (float(np.median(found)) if len(found) else None), len(found)


def check_label(render: RenderConfig, soft_label: SoftLabelConfig) -> None:
    """Raise ConfigError where soft labels of images for label maps are asked for that there are not."""
    if render.renders and render.label == "image" and soft_label.mode == "last_step":
        raise ConfigError(
            "render.label is image with soft_label.mode last_step, whose input is the map itself; expected "
            "soft_label.mode readout or chains, or render.label map"
        )


def settings_of(render: Mapping[str, Any], where: str) -> RenderConfig:
    """Of what an identity says of label maps, the settings; the rest are digests."""
    own = {key: value for key, value in render.items() if key in RenderConfig.model_fields}
    return config.load(RenderConfig, own, where=where)
