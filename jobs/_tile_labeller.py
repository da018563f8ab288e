"""Real unlabelled tiles with the labels that a trained joint model gives them, as the corpus wants it."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from dakter import schema
from dakter.corpus.wording import UNLABELLED
from dakter.data.tiles import TileCorpus
from dakter.diffusion.sampler import SamplerConfig
from dakter.errors import ConflictError, DataError
from jobs._fit import differences_of
from jobs._model_sampler import LABELLING, PlacedModel, check_mode, numpy_of


class TileLabeller:
    """Sample ``i`` is unlabelled tile ``i``, its stored pixels unchanged, with p(label given image) of the model.

    Pixels of 16 bits are rounded to the 8 that a corpus holds, as those of generated images are, and it is the rounded
    image that is labelled. Tiles are read, whole and checked, at the first call: a driver needs their number alone.

    Args:
        model: URL of the joint model; see ``PlacedModel``.
        tiles: URL of the tile corpus.
        evaluations: of the read-out, averaged for one image, at least 1.
        micro_batch, precision: images evaluated at a time, and the number format.
        seed: of the noise of the read-out; that of tile ``i`` comes from (seed, i).
        threads, device: see ``PlacedModel``.

    Attributes:
        num_samples: number of unlabelled tiles.
        record: source, licence, citation and digest of the tiles.

    Raises:
        DataError: there are no unlabelled tiles.
        ConfigError: the model was trained in mode joint, so that it knows no p(label given image).
        ConflictError: classes, bands, size or range of values of model and tiles differ.
    """

    def __init__(
        self,
        model: str,
        tiles: str,
        evaluations: int,
        micro_batch: int,
        precision: Literal["fp32", "bf16"],
        seed: int,
        threads: int,
        device: str,
    ):
        self._tiles = TileCorpus.open(tiles)
        manifest = self._tiles.manifest
        check_tiles(self._tiles)
        self.num_samples = manifest.counts["unlabelled"]
        self._model = PlacedModel(model, threads, device)
        check_mode(self._model.mode, model, LABELLING)
        if different := differences_of(self._model.content, manifest):
            raise ConflictError(
                f"{model} and {tiles} do not fit: {'; '.join(different)}. Expected a model that was trained on such "
                "tiles: mend paths.model or paths.tiles"
            )
        self._evaluations, self._seed = evaluations, seed
        self._sampler = SamplerConfig(micro_batch=micro_batch, precision=precision)
        self.content, self.micro_batch = self._model.content, micro_batch
        self.identity: dict[str, Any] = {
            "content": UNLABELLED,
            "tiles_digest": manifest.digest,
            "model_digest": self._model.digest,
            "evaluations": evaluations,
            "micro_batch": micro_batch,
            "precision": precision,
            "threads": threads,
        }
        self.record = {
            "source": manifest.source,
            "licence": manifest.licence,
            "citation": manifest.citation,
            "tiles_digest": manifest.digest,
        }

    def __call__(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        images = self._tiles.read("unlabelled").images[indices]
        if images.dtype != np.uint8:
            images = schema.to_stored(schema.to_model(images))
        soft = self._model.pipeline.label(
            schema.to_model(images), self._evaluations, self._seed, indices, self._sampler
        )
        return images, schema.soft_to_stored(numpy_of(soft))


def check_tiles(tiles: TileCorpus) -> None:
    """Raise DataError unless there are unlabelled tiles."""
    if not tiles.manifest.counts.get("unlabelled"):
        raise DataError(
            f"{tiles.url}: holds no unlabelled tile, so there is nothing to label; prepare some (data.unlabelled_root, "
            "or data.num_unlabelled), or leave this stage out"
        )
