"""Who is train, val, test and unlabelled: near-duplicates kept together, leakage told, caps drawn by seed.

Two seeds, because they answer different questions: ``split_seed`` cuts val and test, which stay frozen while a study
runs; ``seed`` draws the labels that the study pretends to have, and changes from repeat to repeat.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from dakter.data.catalogue import SPLITS, TEST, TRAIN, UNLABELLED, VAL, Entry
from dakter.data.duplicates import components
from dakter.errors import DataError
from dakter.rng import permutation

_MOST_NAMES = 200  # of leaking pairs in the report; the counts are complete


class SplitSettings(Protocol):
    """The settings that decide a split; DataConfig has them. Counts are per sensor, None means all."""

    @property
    def seed(self) -> int: ...
    @property
    def split_seed(self) -> int: ...
    @property
    def val_share(self) -> float: ...
    @property
    def test_share(self) -> float: ...
    @property
    def num_train(self) -> int | None: ...
    @property
    def num_labelled(self) -> int | None: ...
    @property
    def num_unlabelled(self) -> int | None: ...
    @property
    def num_val(self) -> int | None: ...
    @property
    def num_test(self) -> int | None: ...
    @property
    def drop_duplicates(self) -> bool: ...


@dataclass(frozen=True)
class Member:
    """An entry in its final split. ``group`` is unique across splits; ``name`` is ``<split>/<sensor>/<file>``."""

    entry: Entry
    group: int
    name: str


@dataclass
class Assignment:
    """Members of each split, and what was found and dropped on the way (the leakage report)."""

    members: dict[str, list[Member]]
    leakage: dict[str, Any] = field(default_factory=dict)


def assign(entries: tuple[Entry, ...], pairs: np.ndarray, settings: SplitSettings) -> Assignment:
    """Split ``entries``.

    Val (and test, where the source has none) is cut from train in whole groups of near-duplicates; groups that touch
    test are never made val. Of train, ``num_train`` a sensor stay, of these ``num_labelled`` keep their labels. The
    unlabelled split takes ``num_unlabelled`` a sensor, first of the images that came without labels, then of the
    surplus of train, labels dropped.

    Args:
        entries: all that a source offers.
        pairs: ``(P, 2)`` near-duplicates, rows of ``entries``.
        settings: shares, caps and seeds; with ``drop_duplicates``, near-duplicates of test leave train and
            unlabelled, and near-duplicates of val leave unlabelled, before anything is counted off.

    Raises:
        DataError: train, val or test would be empty.
    """
    cut = _Cut(entries, pairs, settings)
    pool, given = cut.of(TRAIN), cut.of(UNLABELLED)
    test = cut.of(TEST)
    if test:
        test = cut.first(test, settings.num_test, "data/test", settings.split_seed)
    else:
        test = cut.whole_groups(pool, settings.test_share, settings.num_test, "data/test", barred=set())
        pool = _without(pool, test)
    near_test = cut.near(test)
    dropped = (near_test & {*pool, *given}) if settings.drop_duplicates else set()
    pool, given = _without(pool, dropped), _without(given, dropped)
    val = cut.of(VAL)
    if val:
        val = cut.first(val, settings.num_val, "data/val", settings.split_seed)
    else:
        val = cut.whole_groups(pool, settings.val_share, settings.num_val, "data/val", barred=near_test)
        pool = _without(pool, val)
    if settings.drop_duplicates:
        more = cut.near(val) & set(given)
        dropped, given = dropped | more, _without(given, more)

    pool = cut.first(pool, settings.num_train, "data/labelled", settings.seed)
    train = cut.first(pool, settings.num_labelled, "data/labelled", settings.seed)
    spare = _without(pool, train)
    unlabelled = cut.fill(given, spare, settings.num_unlabelled, "data/unlabelled", settings.seed)

    chosen = {TRAIN: train, VAL: val, TEST: test, UNLABELLED: unlabelled}
    for split in (TRAIN, VAL, TEST):
        if not chosen[split]:
            raise DataError(
                f"the {split} split would be empty ({len(entries)} images in all, {len(pairs)} pairs of them "
                "near-duplicates, which stay in one split); give more images, or change data.val_share, "
                "data.test_share or the data.num_... caps"
            )
    members = cut.members(chosen)
    leakage = cut.leakage(members)
    leakage["dropped"] = sorted(f"{e.split}/{e.sensor}/{e.file}" for e in (entries[i] for i in dropped))
    leakage["num_dropped"] = len(dropped)
    leakage["num_unlabelled_from_train"] = len(set(unlabelled) & set(spare))
    return Assignment(members, leakage)


def _without(items: list[int], gone: Iterable[int]) -> list[int]:
    gone = set(gone)
    return [i for i in items if i not in gone]


class _Cut:
    """Row numbers of ``entries`` in, row numbers out; every choice is by sensor and by a named random stream."""

    def __init__(self, entries: tuple[Entry, ...], pairs: np.ndarray, settings: SplitSettings):
        self.entries, self.pairs, self.settings = entries, pairs.reshape(-1, 2), settings

    def of(self, split: str) -> list[int]:
        rows = [i for i, entry in enumerate(self.entries) if entry.split == split]
        return sorted(rows, key=lambda i: (self.entries[i].sensor, self.entries[i].file, self.entries[i].index))

    def by_sensor(self, rows: list[int]) -> dict[str, list[int]]:
        out: dict[str, list[int]] = {}
        for i in rows:
            out.setdefault(self.entries[i].sensor, []).append(i)
        return out

    def first(self, rows: list[int], count: int | None, stream: str, seed: int) -> list[int]:
        """``count`` a sensor of a fixed random order: a smaller count gives a subset of a larger one's."""
        kept: set[int] = set()
        for sensor, mine in self.by_sensor(rows).items():
            # Ordered over all entries, so that who comes first does not hang on who else was left out.
            order = permutation(len(self.entries), seed, f"{stream}/{sensor}", 0)
            kept |= set(sorted(mine, key=lambda i: order[i])[:count])
        return [i for i in rows if i in kept]

    def fill(self, given: list[int], spare: list[int], count: int | None, stream: str, seed: int) -> list[int]:
        """``count`` a sensor, from ``given`` as far as they go, then from ``spare``."""
        out = []
        mine_spare = self.by_sensor(spare)
        mine_given = self.by_sensor(given)
        for sensor in sorted({*mine_spare, *mine_given}):
            taken = self.first(mine_given.get(sensor, []), count, stream, seed)
            left = None if count is None else count - len(taken)
            out += taken + self.first(mine_spare.get(sensor, []), left, stream, seed)
        return out

    def whole_groups(
        self, pool: list[int], share: float, count: int | None, stream: str, barred: set[int]
    ) -> list[int]:
        """About ``share`` of the pool a sensor (at most ``count``), in whole groups that hold none of ``barred``."""
        group = self.groups(pool)
        closed = {group[i] for i in pool if i in barred}
        out: list[int] = []
        for sensor, mine in self.by_sensor(pool).items():
            target = max(1, round(share * len(mine)))
            target = target if count is None else min(target, count)
            blocks: dict[int, list[int]] = {}
            for i in mine:
                blocks.setdefault(group[i], []).append(i)
            ordered = [blocks[key] for key in sorted(set(blocks) - closed, key=lambda key: blocks[key][0])]
            taken: list[int] = []
            for k in permutation(len(ordered), self.settings.split_seed, f"{stream}/{sensor}", 0):
                if len(taken) + len(ordered[k]) <= target:
                    taken += ordered[k]
            out += taken
        # A group that spans sensors goes as one.
        whole = {group[i] for i in out}
        return [i for i in pool if group[i] in whole]

    def groups(self, rows: list[int]) -> dict[int, int]:
        """Group number of each row: connected by near-duplicates among ``rows`` alone."""
        place = {row: k for k, row in enumerate(rows)}
        inside = [(place[i], place[j]) for i, j in self.pairs.tolist() if i in place and j in place]
        numbers = components(len(rows), np.array(inside, np.int64).reshape(-1, 2))
        return {row: int(numbers[k]) for row, k in place.items()}

    def near(self, rows: list[int]) -> set[int]:
        """Rows outside ``rows`` that resemble one inside."""
        inside = set(rows)
        return {b for i, j in self.pairs.tolist() for a, b in ((i, j), (j, i)) if a in inside and b not in inside}

    def members(self, chosen: dict[str, list[int]]) -> dict[str, list[Member]]:
        out: dict[str, list[Member]] = {}
        offset = 0
        for split in SPLITS:
            group = self.groups(chosen[split])
            out[split] = []
            for i in chosen[split]:
                entry = self.entries[i]
                # A train image without its label must not be mistaken for an unlabelled one of the same number.
                file = f"train:{entry.file}" if split == UNLABELLED and entry.split == TRAIN else entry.file
                out[split].append(Member(entry, offset + group[i], f"{split}/{entry.sensor}/{file}"))
            offset += len(set(group.values()))
        return out

    def leakage(self, members: dict[str, list[Member]]) -> dict[str, Any]:
        """Near-duplicates across the final splits: pairs and the images of the first-named split they touch."""
        row = {id(entry): i for i, entry in enumerate(self.entries)}
        where = {row[id(m.entry)]: (split, m.name) for split in SPLITS for m in members[split]}
        crossing = [(TRAIN, VAL), (TRAIN, TEST), (VAL, TEST), (UNLABELLED, VAL), (UNLABELLED, TEST)]
        pairs: dict[str, list[list[str]]] = {f"{a}-{b}": [] for a, b in crossing}
        inside = 0
        for i, j in self.pairs.tolist():
            if i not in where or j not in where:
                continue
            inside += where[i][0] == where[j][0]
            for (a, name_a), (b, name_b) in ((where[i], where[j]), (where[j], where[i])):
                if (a, b) in crossing:
                    pairs[f"{a}-{b}"].append([name_a, name_b])
        return {
            "num_pairs": {key: len(found) for key, found in pairs.items()},
            "num_images": {key: len({a for a, _ in found}) for key, found in pairs.items()},
            "num_pairs_within_splits": inside,
            "pairs": {key: sorted(found)[:_MOST_NAMES] for key, found in pairs.items()},
        }
