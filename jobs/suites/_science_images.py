"""What the images of a generator of suite ``science`` are like, beside real ones: the figures of a cell ``images``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dakter.data.tiles import Split
from dakter.errors import DataError
from dakter.evaluate.bootstrap import Resampling
from dakter.evaluate.likeness import Likeness, Statistics, compare, copies, unbiased_mmd2
from dakter.evaluate.scores import number
from dakter.rng import numpy_rng

# Level of the bound of every ratio.
BOUND = 0.9
# More sets of generated images than these change no ratio by more than a hundredth: the held-out set is only one.
_MOST_SETS = 16
# Stored images ``(N, C, H, W)`` to features ``(N, F)``.
Encode = Callable[[np.ndarray], np.ndarray]


def measured(
    generated: Mapping[str, np.ndarray],
    train: Split,
    val: Split,
    num_classes: int,
    encode: Encode,
    *,
    yardstick: Split,
    unlabelled: np.ndarray | None,
    resampling: Resampling,
) -> dict[str, Any]:
    """Likeness for each soft label of the generated pairs, and that of further real images; copies.

    Val is the held-out set. Training images are drawn with as many of each sensor as val has; of both training and
    generated images as many sets are compared as there are, of the latter ``_MOST_SETS`` at most. Where labels are
    scarce the yardstick is the training images with the masks that the generator did not see as well: sets of twenty
    images lie so far apart by chance that nothing could be told by them.

    Args:
        generated: ``image`` uint8 ``(N, C, H, W)`` and soft labels uint8 ``(N, K, H, W)``: ``last_step`` and, or not,
            ``readout``.
        train: labelled images that the generator learned from.
        yardstick: training images with masks, learned from as well or not.
        encode: features of an encoder trained on real images.
        unlabelled: real images without labels that the generator also learned from, and might copy; or None.

    Returns:
        JSON: ``likeness`` of ``last_step`` and ``readout`` and, where training images make more than one set, of
        ``real``: the last of these sets as if it were generated.

    Raises:
        DataError: fewer generated images than val has.
    """
    held_rows, train_rows = equal_sets(val.sensors, yardstick.sensors)
    count, images = len(held_rows), generated["image"]
    starts = range(0, len(images) - count + 1, count)[:_MOST_SETS]
    if not starts:
        raise DataError(
            f"{len(images)} generated images; expected at least the {count} of val, to compare equal numbers"
        )

    def of(split: Split, rows: np.ndarray) -> Statistics:
        chosen = split.images[rows]
        return Statistics.of(chosen, split.labels[rows], num_classes, encode(chosen))

    held_out, real = of(val, held_rows), [of(yardstick, rows) for rows in train_rows]
    features = encode(images)
    likeness: dict[str, Any] = {}
    for key in ("last_step", "readout"):
        if key in generated:
            labels = generated[key].argmax(axis=1).astype(np.uint8)
            parts = [slice(start, start + count) for start in starts]
            sets = [Statistics.of(images[part], labels[part], num_classes, features[part]) for part in parts]
            likeness[key] = _told(sets, real, held_out, resampling)
    if len(real) > 1:
        likeness["real"] = _told(real[-1:], real[:-1], held_out, resampling)
    seen = train.images if unlabelled is None else np.concatenate([train.images, unlabelled])
    return {
        "num_images": count,
        "num_sets": {"generated": len(starts), "train": len(real)},
        "level": resampling.level,
        "num_resamples": resampling.num_resamples,
        "likeness": likeness,
        "copies": copies(images, val.images[held_rows], seen, resampling).to_json(),
    }


def equal_sets(held_out: np.ndarray, train: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Rows of a held-out set and of as many disjoint training sets as there are, all with the same sensors.

    Args:
        held_out, train: sensor of each image, integers ``(N,)`` and ``(M,)``.

    Raises:
        DataError: no sensor with two images in both.
    """
    rng = numpy_rng(0, "science/images")
    rows = [
        tuple(rng.permutation(np.flatnonzero(sensors == own)) for sensors in (held_out, train))
        for own in np.unique(held_out)
    ]
    counts = [min(len(held), len(own)) for held, own in rows]
    if not any(counts):
        raise DataError("no sensor has images in both train and val; expected some, to compare equal numbers")
    num_sets = min(len(own) // n for (_, own), n in zip(rows, counts, strict=True) if n)

    def joined(side: int, k: int) -> np.ndarray:
        parts = zip(rows, counts, strict=True)
        return np.concatenate([of_sensor[side][k * n : (k + 1) * n] for of_sensor, n in parts])

    return joined(0, 0), [joined(1, k) for k in range(num_sets)]


def _told(
    generated: list[Statistics], train: list[Statistics], held_out: Statistics, resampling: Resampling
) -> dict[str, Any]:
    found: dict[str, Likeness] = compare(generated, train, held_out, resampling)
    estimates = unbiased_mmd2(generated, train, held_out)
    told = {name: measure.to_json() for name, measure in found.items()}
    if estimates:
        told["kernel"]["unbiased_mmd2"] = dict(zip(("generated", "train"), map(number, estimates), strict=True))
    return told
