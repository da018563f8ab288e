"""A corpus as a Ray Data source: one read task a shard, through the reader that checks it."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import numpy as np
from ray.data import DataContext, Dataset, Datasource, ReadTask, read_datasource
from ray.data.block import BlockAccessor, BlockMetadata

from dakter.corpus.accept import Accept
from dakter.corpus.reader import CorpusReader


class CorpusDatasource(Datasource):
    """The committed samples of a corpus, as they stood when this was made.

    Rows have ``index`` (in the corpus), ``image`` uint8 ``(C, H, W)`` and ``soft_label`` uint8 ``(K, H, W)``, in the
    order of the corpus within a shard. A shard that was altered since fails the dataset.

    Args:
        url: the corpus.
        accept: the samples to read; None: all. See ``dakter/corpus/accept.py``.

    Raises:
        DataError, IntegrityError: as ``CorpusReader`` does.
    """

    def __init__(self, url: str, accept: Accept | None = None):
        super().__init__()  # type: ignore[no-untyped-call]
        reader = CorpusReader(url, threads=1, accept=accept)
        self._url, self._pieces = url, list(reader.pieces)
        self._sample_bytes = sum(int(np.prod(shape)) for shape in reader.content.shapes(1).values()) + 8

    def get_name(self) -> str:
        return "Corpus"

    def estimate_inmemory_data_size(self) -> int:
        return self._sample_bytes * sum(len(rows) for _, rows in self._pieces)

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        """One for each shard, however many were asked for: a shard is read and checked as a whole."""
        return [
            ReadTask(
                functools.partial(_blocks, self._url, shard, rows),
                BlockMetadata(
                    num_rows=len(rows),
                    size_bytes=len(rows) * self._sample_bytes,
                    input_files=(f"{self._url}/data.zarr/*/c.{shard}.0.0.0",),
                    exec_stats=None,
                ),
                per_task_row_limit=per_task_row_limit,
            )
            for shard, rows in self._pieces
        ]


def _blocks(url: str, shard: int, rows: np.ndarray) -> Iterable[Any]:
    reader = CorpusReader(url, threads=1, shards=(shard,))
    images, soft = reader.read_shard(shard)
    index = shard * reader.samples_per_shard + rows
    yield BlockAccessor.batch_to_block({"index": index, "image": images[rows], "soft_label": soft[rows]})


def read_corpus(url: str, accept: Accept | None = None) -> Dataset:
    """A corpus as a ``ray.data.Dataset``, one block a shard; see ``CorpusDatasource``."""
    source = CorpusDatasource(url, accept)
    return read_datasource(source, override_num_blocks=max(1, len(source.get_read_tasks(1))))
