"""Numbers and tables of the page of suite ``science`` as Markdown."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from dakter.evaluate.likeness import MEASURES


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table, and an empty one."""
    marks = ["---"] * len(head)
    return [*("| " + " | ".join(row) + " |" for row in (head, marks, *rows)), ""]


def ratios(likeness: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Every measure, and how many are within the bound of how many."""
    cells = []
    for name in MEASURES:
        found = likeness.get(name, {})
        words = f"{fixed(found.get('ratio'), 2)} ({fixed(found.get('upper'), 2)})" if found else "–"
        cells.append(words if found.get("within", True) else f"**{words}**")
    return [*cells, f"{sum(found['within'] for found in likeness.values())} of {len(likeness)}"]


def copies(found: Mapping[str, Any]) -> str:
    """A share of copies with its interval in per cent; bold where it is not within the bound."""
    words = f"{100 * found['share']:.1f} % ({100 * found['low']:.1f} to {100 * found['high']:.1f})"
    return words if found["within"] else f"**{words}**"


def counted(seeds: Collection[int]) -> str:
    """How many seeds a number stands on."""
    return f"{len(seeds)} seed" + ("" if len(seeds) == 1 else "s")


def fixed(value: float | None, digits: int) -> str:
    """A number with so many digits; a dash where there is none."""
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def interval(value: float, low: float, high: float, factor: float, digits: int, sign: str = "") -> str:
    """``value (low to high)``, each times ``factor``; a dash where there is no value."""
    if math.isnan(value):
        return "–"
    form = f"{sign}.{digits}f"
    return f"{factor * value:{form}} ({factor * low:{form}} to {factor * high:{form}})"
