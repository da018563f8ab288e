"""Distances of sets of images from a held-out one, in the numbers measured of each image, for many draws at once.

What ``likeness`` compares by: earth mover's distances of values, decibels between mean power spectra, and a kernel
distance of features. A draw is a count of every image of a set, so that a bootstrap needs no second look at the images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

_GRID = 512

# Counts of the images of every set, held-out first, each ``(R, N)``, to distances from the held-out set ``(S - 1, R)``.
Distances = Callable[[Sequence[np.ndarray]], np.ndarray]


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
class Cumulated:
    """Values of one kind in every set: for each image, how many are at most each point of a common grid.

    ``counts``: ``(N, Q)`` for each set, ``grid`` ``(Q,)`` ascending, the last point beyond every value; ``spread`` in
    which distances are told.
    """

    counts: Sequence[np.ndarray]
    grid: np.ndarray
    spread: float

    @classmethod
    def of(cls, sets: Sequence[Pooled], real: slice, num_images: int) -> Cumulated:
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
class EarthMovers:
    """Mean distance over classes; NaN without any."""

    classes: Sequence[Cumulated]

    def __call__(self, weights: Sequence[np.ndarray]) -> np.ndarray:
        if not self.classes:
            return np.full((len(weights) - 1, len(weights[0])), np.nan)
        return np.mean([one.distances(weights) for one in self.classes], axis=0)


@dataclass(frozen=True)
class Spectrum:
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


class Kernel:
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
