"""Labels of the generator and of the real teacher together, in suite ``science``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from dakter.data.tiles import Split
from dakter.evaluate.pooling import fit_weights, pooled
from dakter.evaluate.scores import Predict


@dataclass(frozen=True)
class Pool:
    """A linear opinion pool of segmenters, itself one.

    Attributes:
        members: stored images ``(N, C, H, W)`` to probabilities ``(N, K, H, W)``.
        weights: one a member, summing to 1.
    """

    members: Sequence[Predict]
    weights: list[float]

    @classmethod
    def fit(cls, members: Sequence[Predict], val: Split) -> Self:
        """With the weights of the least NLL on val."""
        return cls(members, fit_weights([member(val.images) for member in members], val.labels).tolist())

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return pooled([member(images) for member in self.members], self.weights)
