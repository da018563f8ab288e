"""Class quotas: a least share of samples that contain a class, reached by taking out samples that do not."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from dakter.errors import ConfigError, listing
from dakter.rng import derive_seed

_SLACK = 1e-6  # the solver's own: a quota of a million samples is met to a thousandth of a sample


def thin(holds: Mapping[str, np.ndarray], quotas: Mapping[str, float], indices: np.ndarray, seed: int) -> np.ndarray:
    """The largest choice of samples that meets every quota, bool ``(N,)``.

    How many to keep of each combination of classes is a small integer programme; which of them follows from (seed,
    index in the corpus) alone. Samples that contain every class with a quota are never taken out.

    Args:
        holds: class -> which samples contain it, bool ``(N,)``, at least for the classes of ``quotas``.
        quotas: class -> least share, in (0, 1], of the samples that stay.
        indices: ``(N,)``, of the samples in the corpus.
        seed: of the choice among samples with the same classes.

    Raises:
        ConfigError: no choice but none at all meets the quotas; names each with what share the corpus offers.
    """
    if not quotas or not len(indices):
        return np.ones(len(indices), bool)
    held = np.stack([holds[name] for name in quotas], axis=1)
    asked = np.array(list(quotas.values()))
    kinds, kind, count = np.unique(held, axis=0, return_inverse=True, return_counts=True)
    kind = kind.reshape(-1)
    found = milp(
        -np.ones(len(kinds)),
        constraints=LinearConstraint((kinds - asked).T, lb=0),  # samples with the class - share * all samples >= 0
        bounds=Bounds(0, count),
        integrality=np.ones(len(kinds), np.int64),
        options={"mip_rel_gap": 0},
    )
    keep = np.rint(found.x).astype(np.int64) if found.x is not None else np.zeros(len(kinds), np.int64)
    if not keep.sum() or (keep @ (kinds - asked) < -_SLACK).any():
        offers = [
            f"{name}: {share:g} asked for; {int(has.sum())} of {len(has)} samples that passed the rules contain it, "
            f"a share of {has.mean():.3g}"
            for (name, share), has in zip(quotas.items(), held.T, strict=True)
        ]
        raise ConfigError(
            f"curate.quotas cannot be met together, however few samples stay:\n{listing(offers)}\n"
            "Lower them, or generate more samples with these classes"
        )
    rank = np.array([derive_seed(seed, "curate/quota", index=int(index)) for index in indices])
    chosen = np.zeros(len(indices), bool)
    for number, most in enumerate(keep.tolist()):
        own = np.flatnonzero(kind == number)
        chosen[own[np.argsort(rank[own], kind="stable")[:most]]] = True
    return chosen
