"""The page of an accept-list: what each rule turned away, by how much, and pictures of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dakter.report import figures, page, pairs, pictures
from dakter.report.pairs import Pair
from dakter.schema import ClassTable

# What each rule asks, and what is shown beside a sample that it turned away.
_WORDS = {
    "mean": "How bright the image is.",
    "spread": "How much its brightness varies.",
    "looks": "How grainy homogeneous background is: equivalent number of looks, the median of its patches.",
    "spectrum": "How far its power spectrum lies from the mean of the training images, in dB.",
    "damping": "How much darker each class is than the background beside it, in dB.",
    "shares": "How much of the image each class fills.",
    "copies": "How near the nearest training image comes, turned and mirrored as may be.",
    "agreement": "How far the stored label agrees with p(label given image) of a model.",
    "duplicates": "Whether it repeats an earlier sample that passed, turned and mirrored as may be.",
    "quotas": "Passed every rule, and was taken out for the share that other classes were promised.",
}
_BESIDE = {"copies": "nearest training image", "duplicates": "the earlier sample"}
ACCEPTED = "accepted"


@dataclass(frozen=True)
class Shown:
    """A sample on the page: its stored image and soft label, why it is there, and an image to compare it with."""

    index: int
    image: np.ndarray
    soft: np.ndarray
    why: str = ""
    beside: np.ndarray | None = None


def build(document: Mapping[str, Any], shown: Mapping[str, Sequence[Shown]], table: ClassTable) -> str:
    """The page as HTML text.

    Args:
        document: the accept-list, as the curate job writes it.
        shown: rule (or ``quotas``) -> some of the samples that it turned away; ``accepted`` -> some that it kept.
        table: classes of the soft labels.
    """
    counts, failing = document["counts"], document["val_share_failing"]
    sections = [
        {
            "id": rule,
            "title": rule.capitalize(),
            "words": _WORDS[rule],
            "row": row,
            "val": f"{100 * failing[rule]:.1f}" if rule in failing else "–",
            "limits": _limits(document, rule),
            "gallery": _gallery(shown.get(rule, ()), table, _BESIDE.get(rule)),
        }
        for rule, row in counts.items()
    ]
    return page.render(
        "curation.html",
        facts={key: document[key] for key in ("num_samples", "num_accepted", "corpus_digest", "tiles_digest")},
        classes=page.legend(table),
        sections=sections,
        bars=_bars(counts),
        failing=failing["any"],
        shares=document["share_containing"],
        quotas=document["settings"]["quotas"],
        kept=_gallery(shown.get(ACCEPTED, ()), table, None),
    )


def _bars(counts: Mapping[str, Any]) -> Any:
    rows = [(rule, float(row["first"]), f"{row['first']}") for rule, row in counts.items()]
    return figures.bars("Rejected samples by the first rule that they fail", rows, x_label="samples")


def _limits(document: Mapping[str, Any], rule: str) -> list[tuple[str, float | None, float | None, int]]:
    return [
        (measure.partition("/")[2] or rule, limit["low"], limit["high"], limit["num_real"])
        for measure, limit in document["limits"].items()
        if measure.partition("/")[0] == rule
    ]


def _gallery(shown: Sequence[Shown], table: ClassTable, beside: str | None) -> dict[str, Any]:
    items, _ = pairs.rows([Pair(one.image, one.soft, f"sample {one.index}") for one in shown], table)
    for item, one in zip(items, shown, strict=True):
        if beside and one.beside is not None:
            item["tiles"].append((pictures.image(one.beside), f"For comparison: {beside}"))
        item["caption"] += f"; {one.why}" if one.why else ""
    return {"items": items, "heads": pairs.heads("soft label") + ((beside,) if beside else ())}
