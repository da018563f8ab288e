"""Arms of suite ``science`` whose generator val chooses, seed by seed, as a user would who trains several.

They need no cell of their own: the student that learned from the generator of the lower NLL on val stands for the seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jobs.suites._science_plan import Cell

# Suffixes of arms and generators that differ in the generator's training alone.
CHOICES = ("views", "mean-teacher")
CHOSEN = {
    f"{name}-chosen{kept}": " and ".join(f"{name}-{choice}{kept}" for choice in CHOICES)
    + ", whichever has the generator of the lower NLL on val"
    for kept in ("", "-last", "-pooled-last")
    for name in ("ours", "relabel")
}
_GENERATOR = "unlabelled"


def by_val(cells: Sequence[Cell], records: Mapping[str, Mapping[str, Any]]) -> dict[int, str]:
    """Seed -> the one of CHOICES with the lowest NLL of p(y given x) on val; seeds that lack a generator are left out.

    ``cells``: the finished ones of a tier, all with as many labels where they are of these generators.
    """
    lowest: dict[int, dict[str, float]] = {}
    for cell in cells:
        if cell.kind == "generator" and (choice := _choice(cell.generator)):
            curve = records[cell.name]["figures"]["curve"]
            lowest.setdefault(cell.seed, {})[choice] = min(look["val_nll"] for look in curve)
    return {seed: min(found, key=found.__getitem__) for seed, found in lowest.items() if set(found) == set(CHOICES)}


def stands_for(cell: Cell, chosen: Mapping[int, str]) -> str | None:
    """The arm of CHOSEN that a student's cell stands for, or what a generator's stands for; None: for none."""
    choice = _choice(cell.generator)
    if choice is None or chosen.get(cell.seed) != choice:
        return None
    if cell.kind == "generator":
        return chosen_from(str(cell.generator))
    name = chosen_from(str(cell.arm))
    return name if name in CHOSEN else None


def chosen_from(name: str) -> str | None:
    """What is chosen from the arm, generator or segmenter called ``name`` and its like; None if it is no choice."""
    return next((name.replace(f"-{choice}", "-chosen") for choice in CHOICES if f"-{choice}" in name), None)


def _choice(generator: str | None) -> str | None:
    return next((choice for choice in CHOICES if generator == f"{_GENERATOR}-{choice}"), None)
