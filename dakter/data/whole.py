"""What no file shows alone: whether the files of a set together are a set that can be learnt from."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np

from dakter.data.catalogue import TEST, TRAIN, VAL, Catalogue, Inspection
from dakter.errors import DataError
from dakter.schema import IGNORE, ClassTable

log = logging.getLogger("dakter.data")

# Images that together span less than this share of what is stored say nothing to a network: five gray values of 256.
_LEAST_SPAN = 0.02


def check_whole(offer: Catalogue, found: Sequence[Inspection]) -> None:
    """Refuse masks without two classes, and images that fill next to nothing of their value range.

    Args:
        found: an inspection without faults for each entry.

    Raises:
        DataError: says what the set holds, and what may be meant.
    """
    if any(entry.label is not None for entry in offer.entries):
        _check_classes(offer, set().union(*(inspection.classes for inspection in found)))
    _check_span(offer, found)


def tell_absent(class_shares: Mapping[str, Sequence[float]], table: ClassTable) -> None:
    """Warn of each class that a labelled split has no pixel of.

    Args:
        class_shares: split -> share of each class of its labelled pixels.
    """
    for split in (TRAIN, VAL, TEST):
        absent = [name for name, share in zip(table.names, class_shares[split], strict=True) if not share]
        if absent:
            lost = "it cannot be learnt" if split == TRAIN else "it cannot be scored there"
            log.warning("%s holds no pixel of %s: %s", split, ", ".join(absent), lost)


def _check_classes(offer: Catalogue, values: set[int]) -> None:
    known = sorted(values - {IGNORE})
    if len(known) > 1:
        return
    names = offer.table.names
    if not known:
        told = f"no pixel of its masks is labelled: all are {IGNORE}"
    else:
        told = f"every labelled pixel of its masks is {names[known[0]]!r}"
    hint = "; give masks with more of its classes"
    if IGNORE in values and known == [0]:
        hint = (
            f", and the others are {IGNORE}, which says 'not labelled'. If these are black and white masks, write 1 "
            f"({names[1]}) for {IGNORE}"
        )
    raise DataError(f"{offer.title}: {told}; expected two classes at least{hint}")


def _check_span(offer: Catalogue, found: Sequence[Inspection]) -> None:
    lowest, highest = (pick(i.span[k] for i in found) for k, pick in enumerate((min, max)))
    top = int(np.iinfo(offer.dtype).max)
    if highest - lowest >= _LEAST_SPAN * top:
        return
    low, high = offer.value_range
    raw = [low + (high - low) * stored / top for stored in (lowest, highest)]
    raise DataError(
        f"{offer.title}: its images together span {raw[0]:.4g} to {raw[1]:.4g} of the value range {low:g} to {high:g}; "
        f"expected {100 * _LEAST_SPAN:g} % of it at least. State the range of these images (value_range in "
        "classes.yaml), e.g. -35 to 0 for decibels, 0 to 0.5 for linear sigma0"
    )
