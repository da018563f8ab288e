"""A generated pair as a row of pictures with a caption."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dakter.report import pictures
from dakter.schema import ClassTable


@dataclass(frozen=True)
class Pair:
    """A stored image (C, H, W) and its stored soft label (K, H, W) with the name to show it under.

    ``focus`` is the class whose probability is shown; None mixes the colours of all classes.
    """

    image: np.ndarray
    stored: np.ndarray
    name: str
    focus: int | None = None


def heads(third: str) -> tuple[str, ...]:
    """Names of the four pictures of a row; ``third`` says what the soft label is shown as."""
    return ("image", "class map", third, "entropy")


def rows(found: Iterable[Pair], table: ClassTable) -> tuple[list[dict[str, Any]], list[float]]:
    """What the template's ``gallery`` shows of each pair, and each pair's mean entropy in nats a pixel."""
    items, entropies = [], []
    for pair in found:
        soft = pair.stored.astype(np.float32) / np.float32(255)
        classes = soft.argmax(0).astype(np.uint8)
        doubt = float(pictures.entropy_nats(soft).mean())
        entropies.append(doubt)
        holds = pictures.shares_in_words(classes, table)
        if pair.focus is None:
            third = pictures.soft_label(soft, table), "Its soft label, class colours mixed by probability"
        else:
            third = pictures.probability(soft[pair.focus]), f"Its probability of {table.names[pair.focus]}"
        items.append(
            {
                "tiles": [
                    (pictures.image(pair.image), f"Generated SAR image, {pair.name}"),
                    (pictures.class_map(classes, table), f"Its class map: {holds}"),
                    third,
                    (pictures.entropy(soft), f"Its entropy, mean {doubt:.2f} nats a pixel"),
                ],
                "caption": f"{pair.name}: {holds}; entropy {doubt:.2f}",
            }
        )
    return items, entropies
