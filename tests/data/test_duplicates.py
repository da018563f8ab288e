"""Near-duplicates."""

from __future__ import annotations

import numpy as np
from tiny_datasets import texture

from dakter.data.duplicates import components, fingerprint, near_duplicates, thumbnail


def pairs_of(images: list[np.ndarray], correlation: float = 0.9) -> set[tuple[int, int]]:
    stored = [image[None] for image in images]
    found = near_duplicates(np.stack([thumbnail(i) for i in stored]), [fingerprint(i) for i in stored], correlation)
    return {(int(i), int(j)) for i, j in found}


def test_each_of_the_8_flips_and_rotations_is_found_with_noise_and_another_gain() -> None:
    base = texture(1, 48, 48).astype(np.float32)
    noise = np.random.default_rng(0).normal(0, 4, (8, 48, 48))
    turned = [np.rot90(view, k) for view in (base, base[:, ::-1]) for k in range(4)]
    copies = [np.clip(0.6 * view + 20 + noise[k], 0, 255).astype(np.uint8) for k, view in enumerate(turned)]
    images = [texture(1, 48, 48), *copies, texture(2, 48, 48), texture(3, 48, 48)]
    found = pairs_of(images)
    assert {(0, k) for k in range(1, 9)} <= found
    assert not {pair for pair in found if 9 in pair or 10 in pair}


def test_flat_images_resemble_only_their_equals() -> None:
    flat = np.full((32, 32), 7, np.uint8)
    assert pairs_of([flat, flat.copy(), np.full((32, 32), 8, np.uint8), texture(1)]) == {(0, 1)}


def test_blocks_give_what_one_product_gives(monkeypatch: object) -> None:
    import dakter.data.duplicates as module

    images = [texture(k % 7, 24, 24) for k in range(30)]
    whole = pairs_of(images)
    before = module._BLOCK
    try:
        module._BLOCK = 4
        assert pairs_of(images) == whole
    finally:
        module._BLOCK = before
    # 30 images of 7 kinds: 2 kinds of 5 and 5 of 4.
    assert len(whole) == 2 * 10 + 5 * 6


def test_chains_make_one_group() -> None:
    groups = components(6, np.array([[0, 1], [1, 4], [2, 3]]))
    assert len(set(groups.tolist())) == 3
    assert groups[0] == groups[1] == groups[4]
    assert groups[2] == groups[3] != groups[5]
