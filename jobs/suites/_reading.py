"""Reading a corpus for training: dakter's reader beside a zarr loop, tensorstore, and bare GETs with decompression."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from statistics import median
from typing import Any

import numpy as np
import zarr

from dakter import storage
from dakter.corpus import codec
from dakter.corpus.layout import ARRAYS, Layout
from dakter.corpus.reader import CorpusReader
from jobs._cli import Stop

BATCH = 32
_EPOCHS = 24  # of one reading: training reads for hours, so the first fill of memory must not be half of it
_AHEAD = 3  # whole shards under way at a time, for every way alike


def compare(url: str, *, repeats: int, loop_samples: int, stop: Stop) -> dict[str, Any]:
    """Samples per second of each way, medians; and ratios, each the median over repeats of neighbours in time.

    Args:
        loop_samples: how many samples the slow zarr loop reads a repeat.
    """
    total = CorpusReader(url).num_samples
    ways: dict[str, Callable[[], int]] = {
        "reader": lambda: _drain(_reader(url)),
        "bare": lambda: _drain(_bare(url)),
        "tensorstore": lambda: _drain(_tensorstore(url, total)),
        "zarr_loop": lambda: _drain(_zarr_loop(url, total, loop_samples)),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):  # the first warms caches and is not counted
        for name, way in ways.items():
            stop.check("a suite keeps nothing unless it ends")
            begin = time.perf_counter()
            count = way()
            if repeat:
                rates[name].append(count / (time.perf_counter() - begin))
    ours = rates["reader"]
    return {
        "samples": total,
        "samples_per_second": {name: round(median(found), 1) for name, found in rates.items()},
        "reader_over": {
            name: round(median(a / b for a, b in zip(ours, rates[name], strict=True)), 3)
            for name in ways
            if name != "reader"
        },
    }


def _drain(batches: Iterator[tuple[np.ndarray, np.ndarray]]) -> int:
    count = 0
    for images, soft in batches:
        assert len(images) == len(soft)
        count += len(images)
    return count


def _threads() -> int:
    return max(2, os.cpu_count() or 1)


def _reader(url: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    reader = CorpusReader(url)
    return islice(reader.batches(BATCH, seed=0), _EPOCHS * reader.num_samples // BATCH)


def _bare(url: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The same GET and the same decompressor in threads into buffers used again: no check, no shuffle, no batches."""
    layout = Layout.open(url)
    shards = deque(layout.committed() * _EPOCHS)
    shapes = layout.content.shapes(layout.samples_per_shard)
    buffers = [[np.empty(shapes[name], np.uint8) for name in ARRAYS] for _ in range(2)]
    with ThreadPoolExecutor(2 * _AHEAD) as fetchers, ThreadPoolExecutor(_threads()) as pool:

        def get(shard: int) -> list[Any]:
            return [fetchers.submit(layout.objects.view, layout.key(name, shard)) for name in ARRAYS]

        waiting = deque(get(shards.popleft()) for _ in range(min(_AHEAD, len(shards))))
        running: deque[tuple[list[Any], list[np.ndarray]]] = deque()
        while waiting or running:
            if waiting:
                data = [part.result() for part in waiting.popleft()]
                if shards:
                    waiting.append(get(shards.popleft()))
                buffers.append(out := buffers.pop(0))
                parts = [
                    part
                    for blob, target in zip(data, out, strict=True)
                    for part in codec.decode_into(blob, list(target), where=url, pool=pool)
                ]
                running.append((parts, out))
            if len(running) > 1 or not waiting:
                parts, out = running.popleft()
                for part in parts:
                    part.result()
                yield out[0], out[1]


def _tensorstore(url: str, total: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Whole shards in their order, several under way, nothing cached: what suits tensorstore best; no shuffle."""
    import tensorstore

    size = Layout.open(url).samples_per_shard
    context = tensorstore.Context(
        {"cache_pool": {"total_bytes_limit": 0}, "data_copy_concurrency": {"limit": _threads()}}
    )
    arrays = [
        tensorstore.open(
            {"driver": "zarr3", "kvstore": _kvstore(f"{url}/data.zarr/{name}/")}, open=True, context=context
        ).result()
        for name in ARRAYS
    ]
    shards = deque(Layout.open(url).committed() * _EPOCHS)

    def ask(shard: int) -> list[Any]:
        return [array[shard * size : (shard + 1) * size].read() for array in arrays]

    waiting = deque(ask(shards.popleft()) for _ in range(min(_AHEAD, len(shards))))
    while waiting:
        images, soft = (part.result() for part in waiting.popleft())
        if shards:
            waiting.append(ask(shards.popleft()))
        yield images, soft


def _kvstore(url: str) -> dict[str, Any]:
    if not storage.is_remote(url):
        return {"driver": "file", "path": str(storage.local_path(url)) + "/"}
    bucket, _, path = url.removeprefix("s3://").partition("/")
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    return {"driver": "s3", "bucket": bucket, "path": path, "endpoint": endpoint, "aws_region": "us-east-1"}


def _zarr_loop(url: str, total: int, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """What a data loader without dakter does: ``array[i]`` in shuffled order, stacked to batches."""
    group: Any = zarr.open_group(storage.zarr_store(f"{url}/data.zarr"), mode="r")
    image, soft = group["image"], group["soft_label"]
    order = np.random.default_rng(0).permutation(total)[:count].tolist()
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        yield np.stack([image[i] for i in rows]), np.stack([soft[i] for i in rows])
