"""Whether generated images are as like held-out real images as training images are, measure by measure.

The yardstick is the distance of real training images from the held-out ones. Every distance is between two sets of
equal numbers of images, for a distance falls with their number: even two real sets lie apart by what a sample of n
images differs from another by chance. No distance here is therefore about 0 between real sets, and the ratio

    distance(generated, held-out) / distance(train, held-out)

is about 1 for a perfect generator. It is a ratio of two chance quantities, though, and how uncertain it is does not
shrink with n. Where more images exist than are held out, several sets of n are compared and their distances averaged.
Even so a perfect generator does not always pass: by simulation (means of normal values in d dimensions, n = 126, 12
generated and 3 training sets) its 90 % bound is within 1.5 in 27, 63, 97 and 100 cases of 100 for d = 1, 3, 10 and 40,
and that of a generator at exactly 1.5 in 9 to 14. How a further set of real images fares (``compare`` with real images
as ``generated``) tells what can be shown at all.

The kernel distance is the exception: its unbiased estimate is about 0 between real sets, and often negative, so a
ratio of two of them means nothing. See ``distances.Kernel`` for what is divided instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dakter.errors import DataError
from dakter.evaluate.bootstrap import Resampling
from dakter.evaluate.copies import nearest
from dakter.evaluate.distances import Cumulated, Distances, EarthMovers, Kernel, Pooled, Spectrum
from dakter.evaluate.scores import number
from dakter.evaluate.shapes import Parts
from dakter.evaluate.speckle import (
    NUM_BINS,
    class_shares,
    damping_db,
    equivalent_looks,
    histogram,
    ring_power,
    to_gray,
)
from dakter.rng import numpy_rng

MOST_RATIO = 1.5
# Copies: images nearer to a training image than this share of held-out images is.
ORDINARY = 0.99
MEASURES = (
    "histogram",
    "looks",
    "spectrum",
    "damping",
    "class_shares",
    "part_area",
    "part_elongation",
    "num_parts",
    "kernel",
)


@dataclass(frozen=True)
class Statistics:
    """What is measured of each image of a set; a distance between sets needs nothing else.

    Attributes:
        histograms: shares of gray values, float64 ``(N, NUM_BINS)``.
        ring_power: radial power spectrum, float64 ``(N, R)``.
        pooled: measure -> values for each class measured: ``looks`` (apparent, in dB, of patches of class 0),
            ``damping`` (apparent, in dB, of each class but 0), ``class_shares`` (of each class, one value an image),
            ``part_area`` (log10 of the share of the image), ``part_elongation`` and ``num_parts`` (an image) of each
            class but 0.
        features: float64 ``(N, F)`` of an encoder, or None: then there is no kernel distance.
    """

    histograms: np.ndarray
    ring_power: np.ndarray
    pooled: dict[str, tuple[Pooled, ...]]
    features: np.ndarray | None

    @classmethod
    def of(
        cls, images: np.ndarray, labels: np.ndarray, num_classes: int, features: np.ndarray | None = None
    ) -> Statistics:
        """Measure a set.

        Args:
            images: stored (uint8 or uint16) ``(N, C, H, W)``; texture is that of the first band.
            labels: uint8 ``(N, H, W)``, classes or IGNORE; of generated images the argmax of their soft labels.
            num_classes: K; class 0 is the background.
            features: ``(N, F)`` of the images, from an encoder trained on real data.

        Raises:
            DataError: fewer than two images, or shapes that do not belong together.
        """
        if images.ndim != 4 or len(images) < 2 or labels.shape != (len(images), *images.shape[2:]):
            raise DataError(
                f"likeness: images {images.shape} and class maps {labels.shape}; expected (N, C, H, W) and (N, H, W) "
                "with at least two images"
            )
        if features is not None and (features.ndim != 2 or len(features) != len(images)):
            raise DataError(f"likeness: features {features.shape} of {len(images)} images; expected (N, F)")
        gray = to_gray(images)
        pairs = [(gray[i : i + 1], labels[i : i + 1]) for i in range(len(gray))]
        shares = np.stack([class_shares(y, num_classes) for _, y in pairs])
        known = shares.sum(axis=1) > 0
        parts = [[Parts.of(y[0] == k) for _, y in pairs] for k in range(1, num_classes)]
        # Decibels: one nearly flat patch among hundreds must not decide a distance of looks.
        looks = [10 * np.log10(equivalent_looks(x, y)) for x, y in pairs]
        return cls(
            np.stack([histogram(x) for x, _ in pairs]),
            ring_power(gray),
            {
                "looks": (Pooled.of(looks),),
                "damping": tuple(Pooled.of([damping_db(x, y, k) for x, y in pairs]) for k in range(1, num_classes)),
                "class_shares": tuple(Pooled(shares[known, k], np.flatnonzero(known)) for k in range(num_classes)),
                "part_area": tuple(Pooled.of([np.log10(p.area_share) for p in of_k]) for of_k in parts),
                "part_elongation": tuple(Pooled.of([p.elongation for p in of_k]) for of_k in parts),
                "num_parts": tuple(Pooled.of([np.array([len(p.area_share)]) for p in of_k]) for of_k in parts),
            },
            None if features is None else features.astype(np.float64),
        )

    def __len__(self) -> int:
        return len(self.histograms)


@dataclass(frozen=True)
class Likeness:
    """One measure.

    Attributes:
        generated, train: mean distance of generated and of training sets from the held-out set. Distances of
            ``histogram`` are in gray from 0 to 1, of ``spectrum`` in dB, of ``kernel`` as ``Kernel`` says; the others
            in standard deviations of the real values, as a mean over classes.
        ratio: generated / train; infinite if training images lie nowhere apart and generated ones do, or if these
            lack what real images have (a class, say); NaN where real images do not have it.
        upper: bound of the ratio at the level of the draws, one-sided.
    """

    generated: float
    train: float
    ratio: float
    upper: float

    @property
    def within(self) -> bool:
        """Whether the bound is at most ``MOST_RATIO``; False where there is no ratio."""
        return self.upper <= MOST_RATIO

    def to_json(self) -> dict[str, Any]:
        """Null where undefined or infinite."""
        values = {key: number(value) for key, value in vars(self).items()}
        return {**values, "within": self.within}


@dataclass(frozen=True)
class Copies:
    """Generated images that lie nearer to a training image than 99 % of held-out images do.

    Attributes:
        threshold: the correlation with the nearest training image that 1 % of held-out images exceed.
        share: of generated images beyond it, in [0, 1]; by definition 1 % of held-out images are.
        low, high: two-sided interval at the level of the draws, over generated and held-out images.
    """

    threshold: float
    share: float
    low: float
    high: float

    @property
    def within(self) -> bool:
        """Whether the interval holds, or lies below, the share of held-out images."""
        return self.low <= 1 - ORDINARY

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "within": self.within}


def compare(
    generated: Sequence[Statistics], train: Sequence[Statistics], held_out: Statistics, resampling: Resampling
) -> dict[str, Likeness]:
    """Every measure of ``MEASURES``, ``kernel`` where all sets have features.

    Args:
        generated, train: one or several sets without common images, each of as many images as ``held_out``.
        resampling: bootstrap draws over the images of every set; ``level`` is that of the one-sided bound.

    Raises:
        DataError: no set, or other numbers of images, classes or features in one of them.
    """
    sets = [held_out, *train, *generated]
    _check(sets, len(train), len(generated))
    rng = numpy_rng(resampling.seed, "evaluate/likeness")
    count = len(held_out)
    draws = [rng.multinomial(count, np.full(count, 1 / count), size=resampling.num_resamples) for _ in sets]
    weights = [drawn.astype(np.float64) for drawn in draws]
    return {
        name: _judged(distances, weights, len(train), resampling.level)
        for name, distances in _measures(sets, len(train)).items()
    }


def _check(sets: Sequence[Statistics], num_train: int, num_generated: int) -> None:
    if not num_train or not num_generated:
        raise DataError(f"likeness: {num_generated} generated and {num_train} training sets; expected one at least")
    counts = sorted({len(one) for one in sets})
    if len(counts) > 1:
        raise DataError(
            f"likeness: sets of {', '.join(map(str, counts))} images; expected equal numbers in all, as a distance "
            "falls with the number of images"
        )
    widths = {
        (one.ring_power.shape[1], len(one.pooled["class_shares"]), 0 if one.features is None else one.features.shape[1])
        for one in sets
    }
    if len(widths) > 1:
        raise DataError(f"likeness: sets of other rings, classes or features: {widths}; expected the same in all")


def _judged(distances: Distances, weights: Sequence[np.ndarray], num_train: int, level: float) -> Likeness:
    """The ratio and its bound.

    A draw adds the chance of drawing to the chance that is in the sets, to both distances, and so pulls their ratio
    towards 1: a percentile of it may lie far below the ratio (of distances in 40 dimensions it held a true ratio of
    1.5 in 3 cases of 100 instead of 90). The draws therefore tell only by what factor the upper percentile lies above
    their middle, and the bound lies as far above the ratio (it held it in 86 to 91 of 100).
    """
    whole = distances([np.ones((1, drawn.shape[1])) for drawn in weights])
    drawn = distances(weights)
    train, generated = float(whole[:num_train].mean()), float(whole[num_train:].mean())
    ratio = float(_divide(np.array([generated]), np.array([train]))[0])
    ratios = _divide(drawn[num_train:].mean(axis=0), drawn[:num_train].mean(axis=0))
    known = ratios[~np.isnan(ratios)]
    if np.isnan(ratio) or not known.size:
        return Likeness(generated, train, ratio, float("nan"))
    middle, upper = np.quantile(known, [0.5, level], method="inverted_cdf")
    sound = np.isfinite(upper) and middle > 0
    return Likeness(generated, train, ratio, ratio * float(upper / middle) if sound else float("inf"))


def _divide(generated: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Ratios: 1 if both are 0 (all sets alike), NaN where training and held-out images have nothing in common."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.where(generated == train, 1.0, generated / train)
    return np.where(np.isfinite(train), found, np.nan)


def _measures(sets: Sequence[Statistics], num_train: int) -> dict[str, Distances]:
    gray = np.linspace(0.0, 1.0, NUM_BINS + 1)[1:]
    histograms = Cumulated([one.histograms.cumsum(axis=1) for one in sets], gray, 1.0)
    found: dict[str, Distances] = {"histogram": EarthMovers([histograms])}
    for name in sets[0].pooled:
        parts = [[one.pooled[name][k] for one in sets] for k in range(len(sets[0].pooled[name]))]
        real = slice(0, num_train + 1)
        measured = [of_k for of_k in parts if all(len(pooled.values) for pooled in of_k[real])]
        found[name] = EarthMovers([Cumulated.of(of_k, real, len(sets[0])) for of_k in measured])
    found["spectrum"] = Spectrum([one.ring_power for one in sets])
    features = [one.features for one in sets if one.features is not None]
    if features:
        found["kernel"] = Kernel(features, num_train)
    return {name: found[name] for name in MEASURES if name in found}


def unbiased_mmd2(
    generated: Sequence[Statistics], train: Sequence[Statistics], held_out: Statistics
) -> tuple[float, float] | None:
    """The unbiased estimates of MMD^2 behind the kernel distance: mean of generated and of training sets.

    Of features scaled as in ``compare``; None without features. About 0 between real sets, and then often negative.
    """
    features = [one.features for one in (held_out, *train, *generated) if one.features is not None]
    if not features:
        return None
    found = Kernel(features, len(train)).unbiased([np.ones((1, len(one))) for one in features])
    return float(found[len(train) :].mean()), float(found[: len(train)].mean())


def copies(generated: np.ndarray, held_out: np.ndarray, seen: np.ndarray, resampling: Resampling) -> Copies:
    """Share of generated images that are nearer to a training image than 99 % of held-out images are.

    Args:
        generated, held_out: stored images ``(N, C, H, W)`` and ``(M, C, H, W)``.
        seen: every image that the generator learned from, labelled or not.

    Raises:
        DataError: a set without images, or of other bands.
    """
    near, ordinary = (nearest(images, seen).correlation.astype(np.float64) for images in (generated, held_out))
    rng = numpy_rng(resampling.seed, "evaluate/likeness/copies")
    rows = rng.integers(len(ordinary), size=(resampling.num_resamples, len(ordinary)))
    thresholds = np.quantile(ordinary[rows], ORDINARY, axis=1)
    counts = rng.multinomial(len(near), np.full(len(near), 1 / len(near)), size=resampling.num_resamples)
    shares = ((near > thresholds[:, None]) * counts).sum(axis=1) / len(near)
    tail = (1 - resampling.level) / 2
    low, high = np.quantile(shares, [tail, 1 - tail])
    threshold = float(np.quantile(ordinary, ORDINARY))
    return Copies(threshold, float((near > threshold).mean()), float(low), float(high))
