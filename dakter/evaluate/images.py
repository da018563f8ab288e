"""Generated images beside real ones: texture, class shares and nearness to training images, for the report.

Real training images are the measure. Real validation images, never trained on, show how far two real sets differ by
chance; generated images should differ no more.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dakter.evaluate.copies import nearest
from dakter.evaluate.scores import number, numbers
from dakter.evaluate.speckle import Texture, histogram_distance, spectrum_distance_db, to_gray

_QUANTILES = (0.05, 0.5, 0.95, 0.99)


def compare(
    train: tuple[np.ndarray, np.ndarray],
    held_out: tuple[np.ndarray, np.ndarray],
    generated: tuple[np.ndarray, np.ndarray],
    class_names: tuple[str, ...],
) -> dict[str, Any]:
    """Statistics of the three sets, their distances from ``train`` and their nearest training images, as JSON.

    Args:
        train, held_out, generated: stored images ``(N, C, H, W)`` and class maps uint8 ``(N, H, W)``; the class maps
            of generated images are the argmax of their soft labels. Texture is that of the first band.
        class_names: names of the K classes; class 0 is the background.
    """
    sets = {"train": train, "held_out": held_out, "generated": generated}
    textures = {name: Texture.of(to_gray(x), y, len(class_names)) for name, (x, y) in sets.items()}
    near = {name: nearest(sets[name][0], train[0]).correlation for name in ("held_out", "generated")}
    ordinary = float(np.quantile(near["held_out"], 0.99))
    return {
        "sets": {name: _texture_json(texture, len(sets[name][0]), class_names) for name, texture in textures.items()},
        "distance_from_train": {
            name: {
                "histogram_gray": histogram_distance(textures[name].histogram, textures["train"].histogram),
                "spectrum_db": number(spectrum_distance_db(textures[name].spectrum, textures["train"].spectrum)),
            }
            for name in ("held_out", "generated")
        },
        "nearest_training_image": {
            "correlation_quantiles": {
                name: {str(q): float(np.quantile(values, q)) for q in _QUANTILES} for name, values in near.items()
            },
            # By definition 1 % of real images lie beyond; clearly more of the generated would speak of copying.
            "share_of_generated_beyond_99_percent_of_real": float((near["generated"] > ordinary).mean()),
        },
    }


def _texture_json(texture: Texture, num_images: int, class_names: tuple[str, ...]) -> dict[str, Any]:
    return {
        "num_images": num_images,
        "apparent_looks": number(texture.looks),
        "histogram": texture.histogram.tolist(),
        "spectrum": texture.spectrum.tolist(),
        "apparent_damping_db": dict(zip(class_names[1:], numbers(texture.damping_db), strict=True)),
        "class_shares": dict(zip(class_names, numbers(texture.shares), strict=True)),
    }
