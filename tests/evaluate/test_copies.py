import json

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from dakter.errors import DataError
from dakter.evaluate.copies import dihedral, nearest
from dakter.evaluate.images import compare


def scenes(count: int, seed: int, size: int = 32) -> np.ndarray:
    """Smooth random uint8 scenes (N, 1, S, S)."""
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(count, 1, size, size)), (0, 0, 3, 3))
    noise = (noise - noise.min()) / (noise.max() - noise.min())
    return np.rint(255 * noise).astype(np.uint8)


def test_a_turned_mirrored_dimmed_copy_is_found() -> None:
    train = scenes(30, 0)
    for number, original in enumerate((3, 8, 21)):
        for transform, copy in enumerate(dihedral(train[original : original + 1])):
            dimmed = (copy // 2 + 10 * number).astype(np.uint8)
            found = nearest(dimmed, train)
            assert found.index.tolist() == [original]
            assert found.correlation[0] > 0.99
            # What undoes a rotation is its inverse; a mirroring followed by a rotation undoes itself.
            assert found.transform[0] == (transform if transform >= 4 else (-transform) % 4)


def test_new_scenes_are_farther_than_copies_and_chunks_do_not_matter() -> None:
    train, fresh = scenes(40, 0), scenes(20, 1)
    whole, parts = nearest(fresh, train), nearest(fresh, train, chunk=3)
    assert whole.correlation.max() < 0.97
    assert parts.index.tolist() == whole.index.tolist()
    assert parts.correlation == pytest.approx(whole.correlation)


def test_other_sizes_compare_and_an_empty_image_is_near_nothing() -> None:
    train = scenes(10, 0, size=64)
    smaller = train[4:5].reshape(1, 1, 32, 2, 32, 2).mean((3, 5)).astype(np.uint8)
    assert nearest(smaller, train).index.tolist() == [4]
    assert nearest(np.full_like(smaller, 7), train).correlation.tolist() == [0.0]


def test_other_bands_are_refused() -> None:
    with pytest.raises(DataError, match="same bands"):
        nearest(np.zeros((1, 2, 8, 8), np.uint8), np.zeros((1, 1, 8, 8), np.uint8))


def test_report_tells_a_memorising_generator_from_a_fresh_one() -> None:
    train, val = scenes(60, 0), scenes(40, 1)

    def labels(images: np.ndarray) -> np.ndarray:
        return (images[:, 0] < 60).astype(np.uint8)

    def report(generated: np.ndarray) -> dict[str, object]:
        data = compare((train, labels(train)), (val, labels(val)), (generated, labels(generated)), ("sea", "oil"))
        return json.loads(json.dumps(data, allow_nan=False))

    copied, fresh = report(train[:20, :, ::-1]), report(scenes(40, 2))
    key = "share_of_generated_beyond_99_percent_of_real"
    assert copied["nearest_training_image"][key] == 1.0  # type: ignore[index]
    assert fresh["nearest_training_image"][key] < 0.2  # type: ignore[index]
    noisy = report(np.random.default_rng(5).integers(0, 256, (40, 1, 32, 32)).astype(np.uint8))
    near, far = fresh["distance_from_train"], noisy["distance_from_train"]
    assert far["generated"]["spectrum_db"] > 3 * near["generated"]["spectrum_db"]  # type: ignore[index]
    assert far["held_out"] == near["held_out"]  # type: ignore[index]
