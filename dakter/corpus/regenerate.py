"""One sample's micro-batch drawn again and held against what is stored: can the corpus be believed?

On the device type and the releases that made the shard, the bytes must be equal. Elsewhere kernels add in another
order, and a solver carries the differences on: there the tolerances below hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dakter.corpus.commit import read_commit
from dakter.corpus.layout import Layout, differences
from dakter.corpus.reader import CorpusReader
from dakter.corpus.shard import PairSampler
from dakter.errors import ConfigError, ConflictError, IntegrityError

# Means over a micro-batch: grey levels (of 255) of the images, and total variation of the soft labels. Measured with
# the demo preset's model, 32 samples, x86 CPU: micro-batches of 4 to 32 and 1 or 2 threads gave equal bytes; bf16
# against fp32, which differ by more than two devices do, 0.20 levels and 0.0006.
IMAGE_TOLERANCE, SOFT_TOLERANCE = 1.0, 0.005


def regenerate(layout: Layout, sampler: PairSampler, sample: int, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Draw the micro-batch of ``sample`` with ``sampler`` and compare.

    Args:
        facts: ``device`` and ``versions`` of this process, as commit records hold them.

    Returns:
        The comparison: ``equal``, ``comparable_bits`` (same device type and releases), ``image_mean_abs`` and
        ``image_max_abs`` in stored levels, ``soft_mean_tv``, ``argmax_agreement``, ``within_tolerance``.

    Raises:
        ConfigError: no such sample. ConflictError: another sampler made the corpus; names the difference.
        IntegrityError: the shard is not committed or was altered; or it is not what the sampler draws.
    """
    size, micro = layout.samples_per_shard, layout.micro_batch
    shard, first = sample // size, sample // micro * micro
    end = layout.samples_before(layout.planned_shards())
    if not 0 <= sample < end:
        raise ConfigError(f"sample is {sample}; expected 0 to {end - 1}")
    other = differences(layout.identity["sampler"], sampler.identity)
    if other:
        raise ConflictError(f"{layout.url}: another sampler made this corpus: {'; '.join(other)}")
    stored = CorpusReader(layout.url).read_shard(shard)
    rows = slice(first - shard * size, first - shard * size + micro)
    fresh = sampler(np.arange(first, last := min(first + micro, end), dtype=np.int64))
    record = read_commit(layout, shard)
    assert record is not None
    made = record["facts"]
    compared = {
        "sample": sample,
        "shard": shard,
        "micro_batch": [first, last - 1],
        "comparable_bits": all(made.get(key) == facts[key] for key in ("device", "versions")),
        **compare(tuple(part[rows] for part in stored), fresh),
    }
    told = (
        f"{layout.url}: sample {sample} (micro-batch {first} to {last - 1}): images differ by "
        f"{compared['image_mean_abs']:.3g} levels on average (at most {compared['image_max_abs']}), soft labels by "
        f"{compared['soft_mean_tv']:.3g} total variation"
    )
    if compared["comparable_bits"] and not compared["equal"]:
        raise IntegrityError(f"{told}; on the device type and releases that made it, equal bytes are expected")
    if not compared["within_tolerance"]:
        raise IntegrityError(
            f"{told}; expected at most {IMAGE_TOLERANCE:g} and {SOFT_TOLERANCE:g}: not what this model draws"
        )
    return compared


def compare(stored: tuple[np.ndarray, ...], fresh: tuple[np.ndarray, ...]) -> dict[str, Any]:
    """How far two sets of pairs are apart: images uint8 ``(n, C, H, W)``, soft labels uint8 ``(n, K, H, W)``."""
    image, soft = (np.abs(a.astype(np.int16) - b.astype(np.int16)) for a, b in zip(stored, fresh, strict=True))
    image_mean, soft_tv = float(image.mean()), float(soft.sum(axis=1).mean() / 2 / 255)
    return {
        "equal": not image.any() and not soft.any(),
        "image_mean_abs": image_mean,
        "image_max_abs": int(image.max()),
        "soft_mean_tv": soft_tv,
        "argmax_agreement": float((stored[1].argmax(axis=1) == fresh[1].argmax(axis=1)).mean()),
        "within_tolerance": image_mean <= IMAGE_TOLERANCE and soft_tv <= SOFT_TOLERANCE,
    }
