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
ratio of two of them means nothing. See ``_Kernel`` for what is divided instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dakter.errors import DataError
from dakter.evaluate.bootstrap import Resampling
from dakter.evaluate.copies import nearest
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
_GRID = 512


@dataclass(frozen=True)
class Pooled:
    """Values of a set, none, one or several an image: ``values`` float64 ``(P,)`` and ``image`` int64 ``(P,)``."""

    values: np.ndarray
    image: np.ndarray

    @classmethod
    def of(cls, an_image: Sequence[np.ndarray]) -> Pooled:
        """From the values of each image."""
        counts = [len(values) for values in an_image]
        return cls(np.concatenate(an_image).astype(np.float64), np.repeat(np.arange(len(an_image)), counts))


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
            ``histogram`` are in gray from 0 to 1, of ``spectrum`` in dB, of ``kernel`` as ``_Kernel`` says; the others
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


# Counts of the images of every set, held-out first, each ``(R, N)``, to distances from the held-out set ``(S - 1, R)``.
_Distances = Callable[[Sequence[np.ndarray]], np.ndarray]


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


def _judged(distances: _Distances, weights: Sequence[np.ndarray], num_train: int, level: float) -> Likeness:
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


def _measures(sets: Sequence[Statistics], num_train: int) -> dict[str, _Distances]:
    gray = np.linspace(0.0, 1.0, NUM_BINS + 1)[1:]
    histograms = _Cumulated([one.histograms.cumsum(axis=1) for one in sets], gray, 1.0)
    found: dict[str, _Distances] = {"histogram": _EarthMovers([histograms])}
    for name in sets[0].pooled:
        parts = [[one.pooled[name][k] for one in sets] for k in range(len(sets[0].pooled[name]))]
        real = slice(0, num_train + 1)
        measured = [of_k for of_k in parts if all(len(pooled.values) for pooled in of_k[real])]
        found[name] = _EarthMovers([_Cumulated.of(of_k, real, len(sets[0])) for of_k in measured])
    found["spectrum"] = _Spectrum([one.ring_power for one in sets])
    features = [one.features for one in sets if one.features is not None]
    if features:
        found["kernel"] = _Kernel(features, num_train)
    return {name: found[name] for name in MEASURES if name in found}


@dataclass(frozen=True)
class _Cumulated:
    """Values of one kind in every set: for each image, how many are at most each point of a common grid.

    ``counts``: ``(N, Q)`` for each set, ``grid`` ``(Q,)`` ascending, the last point beyond every value; ``spread`` in
    which distances are told.
    """

    counts: Sequence[np.ndarray]
    grid: np.ndarray
    spread: float

    @classmethod
    def of(cls, sets: Sequence[Pooled], real: slice, num_images: int) -> _Cumulated:
        """The grid is every value that occurs, or ``_GRID`` quantiles of many."""
        everything = np.concatenate([one.values for one in sets])
        grid = np.unique(everything)
        if len(grid) > _GRID:
            grid = np.unique(np.quantile(everything, np.linspace(0, 1, _GRID), method="inverted_cdf"))
        counts = []
        for one in sets:
            place = one.image * len(grid) + np.searchsorted(grid, one.values)
            flat = np.bincount(place, minlength=num_images * len(grid)).reshape(num_images, len(grid))
            counts.append(flat.cumsum(axis=1).astype(np.float64))
        spread = float(np.concatenate([one.values for one in sets[real]]).std())
        return cls(counts, grid, spread or 1.0)

    def distances(self, weights: Sequence[np.ndarray]) -> np.ndarray:
        """Wasserstein distances of order 1 ``(S - 1, R)``: the area between two cumulative distributions.

        Infinite where a set has no value and the held-out one has; NaN where that one has none.
        """
        held_out = self._cumulative(0, weights[0])
        widths = np.diff(self.grid) / self.spread
        far = [
            np.abs(self._cumulative(k, drawn) - held_out)[:, :-1] @ widths
            for k, drawn in enumerate(weights[1:], start=1)
        ]
        lacking = np.isnan(np.stack(far)) & ~np.isnan(held_out[:, -1])
        return np.where(lacking, np.inf, np.stack(far))

    def _cumulative(self, number: int, drawn: np.ndarray) -> np.ndarray:
        sums = drawn @ self.counts[number]
        total = sums[:, -1:]
        return np.divide(sums, total, out=np.full_like(sums, np.nan), where=total > 0)


@dataclass(frozen=True)
class _EarthMovers:
    """Mean distance over classes; NaN without any."""

    classes: Sequence[_Cumulated]

    def __call__(self, weights: Sequence[np.ndarray]) -> np.ndarray:
        if not self.classes:
            return np.full((len(weights) - 1, len(weights[0])), np.nan)
        return np.mean([one.distances(weights) for one in self.classes], axis=0)


@dataclass(frozen=True)
class _Spectrum:
    """Root mean square over rings of the ratio of two mean spectra in dB, as ``speckle.spectrum_distance_db``."""

    power: Sequence[np.ndarray]

    def __call__(self, weights: Sequence[np.ndarray]) -> np.ndarray:
        decibels = []
        for drawn, power in zip(weights, self.power, strict=True):
            mean = drawn @ power
            with np.errstate(divide="ignore", invalid="ignore"):
                decibels.append(10 * np.log10(mean / mean.sum(axis=1, keepdims=True)))
        with np.errstate(invalid="ignore"):  # rings without power: NaN, there is nothing to compare
            return np.stack([np.sqrt(np.mean((one - decibels[0]) ** 2, axis=1)) for one in decibels[1:]])


class _Kernel:
    """Distance of encoder features by the polynomial kernel, from the unbiased estimate of MMD^2.

    Told is ``sqrt(max(MMD^2 + chance, 0))``. MMD^2 is the unbiased estimate (Binkowski et al. 2018, 1801.01401,
    section 4), about 0 between two real sets. ``chance`` is what its biased counterpart has on average between two
    sets of n real images of the same kind, (var(train) + var(held-out)) / n in the kernel's space: the spread that
    the other distances have in them by nature. It is of real images alone, the same for every set, so that a
    generator gains nothing by images all alike.

    Args:
        features: ``(N, F)`` of each set, held-out first, then training sets.
    """

    def __init__(self, features: Sequence[np.ndarray], num_train: int):
        # The kernel is not free of scale, and features of an encoder of ours have none of their own: far below 1 it
        # would see only means, far above 1 only the few largest values.
        rms = float(np.sqrt(np.mean([np.mean(one**2) for one in features[: num_train + 1]])))
        scaled = [one / (rms or 1.0) for one in features]
        self._within = [polynomial_kernel(one, one) for one in scaled]
        self._across = [polynomial_kernel(one, scaled[0]) for one in scaled]
        share = np.array([_kernel_variance(kernel) for kernel in self._within]) / len(scaled[0])
        self._bias = (share[1:] + share[0])[:, None]  # (S - 1, 1)
        self._chance = float(share[0] + share[1 : num_train + 1].mean())

    def __call__(self, weights: Sequence[np.ndarray]) -> np.ndarray:
        return np.sqrt(np.maximum(self.unbiased(weights) + self._chance, 0.0))

    def unbiased(self, weights: Sequence[np.ndarray]) -> np.ndarray:
        """MMD^2 of every set from the held-out one, ``(S - 1, R)``, less its bias in the sets as they are.

        Draws keep what drawing adds, as those of the other distances do; without it draws of the yardstick would
        often be 0.
        """
        total = weights[0].sum(axis=1) ** 2
        alone = [_form(drawn, kernel, drawn) for kernel, drawn in zip(self._within, weights, strict=True)]
        biased = [
            (alone[k] + alone[0] - 2 * _form(weights[k], self._across[k], weights[0])) / total
            for k in range(1, len(weights))
        ]
        return np.stack(biased) - self._bias


def unbiased_mmd2(
    generated: Sequence[Statistics], train: Sequence[Statistics], held_out: Statistics
) -> tuple[float, float] | None:
    """The unbiased estimates of MMD^2 behind the kernel distance: mean of generated and of training sets.

    Of features scaled as in ``compare``; None without features. About 0 between real sets, and then often negative.
    """
    features = [one.features for one in (held_out, *train, *generated) if one.features is not None]
    if not features:
        return None
    found = _Kernel(features, len(train)).unbiased([np.ones((1, len(one))) for one in features])
    return float(found[len(train) :].mean()), float(found[: len(train)].mean())


def polynomial_kernel(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(x . y / F + 1)^3 for features ``(N, F)`` and ``(M, F)``: ``(N, M)``."""
    return (one @ other.T / one.shape[1] + 1.0) ** 3


def _form(left: np.ndarray, kernel: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Row by row ``left @ kernel @ right``."""
    return np.einsum("ri,ri->r", left @ kernel, right)


def _kernel_variance(kernel: np.ndarray) -> float:
    """Variance of one set in the kernel's space, unbiased: mean of k(x, x) less that of pairs of different images."""
    own, count = np.diagonal(kernel), len(kernel)
    return float(own.mean() - (kernel.sum() - own.sum()) / (count * (count - 1)))


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
