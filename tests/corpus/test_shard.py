"""The bytes of a sample depend on its micro-batch alone."""

from __future__ import annotations

import numpy as np
import pytest
from fake_pairs import FakeSampler

from dakter.corpus.shard import Tally, compute
from dakter.errors import DataError


def test_samples_do_not_depend_on_the_shard_they_lie_in() -> None:
    whole = compute(FakeSampler(), 0, 24)
    for first, count in ((0, 8), (8, 16), (20, 4)):
        part = compute(FakeSampler(), first, count)
        for name in whole:
            assert np.array_equal(part[name], whole[name][first : first + count])
    other = compute(FakeSampler(micro_batch=8), 0, 24)
    assert not np.array_equal(other["image"], whole["image"])  # the fake does depend on its micro-batch


def test_every_call_is_one_whole_micro_batch() -> None:
    calls: list[list[int]] = []

    class Watched(FakeSampler):
        def __call__(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            calls.append(indices.tolist())
            return super().__call__(indices)

    compute(Watched(), 8, 8)
    assert calls == [[8, 9, 10, 11], [12, 13, 14, 15]]


def test_a_sampler_that_returns_nonsense_is_refused() -> None:
    class Floats(FakeSampler):
        def __call__(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            images, soft = super().__call__(indices)
            return images.astype(np.float32), soft

    class Unnormalised(FakeSampler):
        def __call__(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            images, soft = super().__call__(indices)
            soft[-1, :, 3, 3] = 0
            return images, soft

    with pytest.raises(DataError, match="image is float32"):
        compute(Floats(), 0, 4)
    with pytest.raises(DataError, match="do not sum to 255"):
        compute(Unnormalised(), 0, 4)


def tallied(*parts: np.ndarray) -> tuple[list[float], float]:
    tally = Tally()
    for part in parts:
        tally.add(part)
    return tally.class_shares, tally.entropy_nats


def test_tally_is_shares_and_entropy() -> None:
    soft = np.zeros((1, 2, 1, 2), np.uint8)
    soft[0, :, 0, 0] = 255, 0
    soft[0, :, 0, 1] = 127, 128
    shares, entropy = tallied(soft)
    assert shares == pytest.approx([(255 + 127) / 510, 128 / 510])
    assert entropy == pytest.approx(np.log(2) / 2, abs=1e-4)


def test_tally_counts_every_sample_of_any_shape() -> None:
    soft = compute(FakeSampler(), 0, 12)["soft_label"]
    odd = np.concatenate([soft[:, :, :7, :7]] * 300)[:3001]  # an odd number of bytes, in several parts
    p = odd / 255.0
    shares, entropy = tallied(odd[:7], odd[7:])
    assert shares == pytest.approx(p.mean(axis=(0, 2, 3)).tolist())
    assert entropy == pytest.approx(float(-(p * np.log(np.maximum(p, 1e-300))).sum(axis=1).mean()))
