"""The page of suite ``science``: every arm of a tier with intervals, contrasts, and which cells are open."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from dakter import storage
from dakter.evaluate.bootstrap import Interval, Resampling, holm
from dakter.evaluate.packed import unpack, unpack_array
from dakter.evaluate.scores import Scores
from dakter.evaluate.study import BRIER, MIOU, NLL, Measure, Students, Study, block, class_iou, worth_labels
from dakter.report import figures
from dakter.report.svg import standalone
from jobs.suites import _science_borders as borders
from jobs.suites import _science_curves as curves
from jobs.suites import _science_fractions as fractions
from jobs.suites import _science_likeness as likeness
from jobs.suites import _science_lookalikes as lookalikes
from jobs.suites import _science_segmenters as segmenters
from jobs.suites import _science_text as text
from jobs.suites._science_arms import ALL_ARMS, KEPT, LATE, TAUGHT, VIEWS
from jobs.suites._science_chosen import CHOSEN, by_val, chosen_from, stands_for
from jobs.suites._science_contrasts import CONTRASTS
from jobs.suites._science_plan import Cell, Tier, cells, data_name

Records = Mapping[str, Mapping[str, Any]]


def write_page(name: str, tier: Tier, records: Records, folder: str) -> str:
    """Write ``<folder>/<name>.md`` and its figure from the records of finished cells; returns the page's place."""
    everything = cells(tier)
    done = [cell for cell in everything if cell.name in records]
    lines = [
        f"# Science, tier {name}",
        "",
        f"`python jobs/benchmark.py --suite science --tier {name} --report` from {len(done)} of {len(everything)} "
        f"cells. {_provenance(records)}",
        "",
    ]
    if any(cell.kind == "student" for cell in done) and any(cell.kind == "data" for cell in done):
        page = _Page(tier, done, records)
        lines += page.arms() + page.by_sensor() + page.contrasts() + page.worth()
        lines += page.segmenters() + page.look_alikes() + page.borders()
        lines += page.generators()
        drawing = page.curves()
        if drawing:
            storage.put(storage.join(folder, f"{name}-curves.svg"), standalone(drawing).encode())
            lines += [curves.CURVES_NOTE, "", f"![p(y given x) by step of the generator]({name}-curves.svg)", ""]
        lines += page.fractions() + likeness.section(done, records)
        rows = page.forest()
        if rows:
            longest = max(len(row.name) for row in rows)
            x_label = "points of test mIoU (seeds in brackets)"
            drawing = figures.forest("Difference in mIoU", rows, x_label=x_label, most=longest)
            storage.put(storage.join(folder, f"{name}.svg"), standalone(drawing).encode())
            lines += [f"![Differences in mIoU with 95 % intervals]({name}.svg)", ""]
    lines += _open_cells(everything, records)
    place = storage.join(folder, f"{name}.md")
    storage.put(place, ("\n".join(lines).rstrip() + "\n").encode())
    return place


class _Page:
    """The parts of the page, from records once unpacked."""

    def __init__(self, tier: Tier, done: Sequence[Cell], records: Records):
        self.tier, self.records = tier, records
        self.done = done
        first = next(cell for cell in done if cell.kind == "data")
        self.facts = records[first.name]["figures"]
        self.classes: list[str] = self.facts["class_table"]["names"]
        test = self.facts["test"]
        groups, sensors = unpack_array(test["groups"]), unpack_array(test["sensors"])
        self.study = Study(
            {sensor: groups[sensors == k] for k, sensor in enumerate(self.facts["sensors"]) if (sensors == k).any()},
            Resampling(tier.num_resamples, 0, 0.95),
        )
        self.students: dict[str, dict[int, dict[str, Any]]] = {}
        self.tables: dict[str, list[Mapping[str, Any]]] = {}
        self.cells: dict[str, list[tuple[Cell, Mapping[str, Any]]]] = {}
        chosen = by_val(done, records)
        for cell in done:
            scored = records[cell.name]["figures"]
            if cell.kind == "student":
                assert cell.arm
                assert cell.architecture
                for arm in (cell.arm, stands_for(cell, chosen)):
                    self._take(arm, cell, cell.architecture[0], scored)
                if "pool" in scored:
                    assert cell.generator
                    name = segmenters.named_pool(cell.generator)
                    if cell.architecture[0] not in self.students.get(name, {}).get(cell.seed, {}):  # arms share it
                        self._take(name, cell, cell.architecture[0], scored["pool"])
            elif cell.kind == "generator" and scored["segmenter"]:
                for kind in (cell.generator, stands_for(cell, chosen)):
                    self._take(kind and segmenters.named(kind), cell, "segmenter", scored["segmenter"])

    def _take(self, arm: str | None, cell: Cell, architecture: str, scored: Mapping[str, Any]) -> None:
        if arm is None:
            return
        packed = scored["test"]["packed"]
        found = {sensor: unpack(packed[sensor]) for sensor in packed}
        self.students.setdefault(arm, {}).setdefault(cell.seed, {})[architecture] = found
        self.cells.setdefault(arm, []).append((cell, scored))
        self.tables.setdefault(arm, []).append(scored["test"]["tables"])

    def arms(self) -> list[str]:
        """Every arm of the tier; one without a student is open."""
        oil = class_iou(1)
        head = ["arm", "students", "mIoU", f"IoU {self.classes[1]}", "NLL", "Brier", "ECE", "ECE tempered"]
        rows = []
        names = [*self.tier.arms, *(name for name in self.students if name not in ALL_ARMS)]
        for name in names:
            what = ALL_ARMS[name].what if name in ALL_ARMS else CHOSEN.get(name, segmenters.described(name))
            arm = self.students.get(name)
            if arm is None:
                rows.append([f"**{name}** ({what})", "open", *[""] * 6])
                continue
            seeds, architectures = block([arm])
            rows.append(
                [
                    f"**{name}** ({what})",
                    f"{len(seeds)} x {len(architectures)}",
                    self._estimate(arm, MIOU, 100, 1, most=1.0),
                    self._estimate(arm, oil, 100, 1, most=1.0),
                    self._estimate(arm, NLL, 1, 3, most=math.inf),
                    self._estimate(arm, BRIER, 1, 3, most=2.0),
                    text.fixed(self._mean(name, "ece"), 3),
                    text.fixed(self._mean(name, "ece_tempered"), 3),
                ]
            )
        return [
            "## Arms",
            "",
            "Test split; means over sensors, architectures and seeds (seeds x architectures under *students*), in "
            "brackets 95 % intervals over groups of near-duplicate test images and seeds. With one seed the luck of "
            "that seed is not in the interval. Rows stand for the seeds that they have: compare arms by the contrasts, "
            "which pair seeds. NLL and Brier a pixel, before a temperature; ECE class-wise in 15 bins, "
            "before and after a temperature fitted on val.",
            "",
            *text.table(head, rows),
        ]

    def by_sensor(self) -> list[str]:
        """mIoU in per cent on each sensor apart, and from one confusion matrix over all."""
        columns = [*self.study.groups, "pooled"]
        rows = [
            [name, *(text.fixed(100 * float(np.mean([table[c]["miou"] for table in tables])), 1) for c in columns)]
            for name, tables in self.tables.items()
        ]
        return ["## mIoU on each sensor", "", *text.table(["arm", *columns], rows)]

    def contrasts(self) -> list[str]:
        """The primary contrast and the others."""
        head = ["contrast", "measure", "seeds x architectures", "difference", "p", "p (Holm)"]
        found = self._contrasts()
        corrected = holm([math.nan if first else interval.p_value for *_, interval, first in found])
        rows = []
        for (a, b, measure, interval, first), p_holm in zip(found, corrected, strict=True):
            seeds, architectures = block([self.students[a], self.students[b]])
            factor, digits = (100, 1) if measure in ("mIoU", f"IoU {self.classes[1]}") else (1, 3)
            rows.append(
                [
                    f"{a} − {b}" + (" (primary)" if first else ""),
                    measure,
                    f"{len(seeds)} x {len(architectures)}",
                    text.interval(interval.difference, interval.low, interval.high, factor, digits, "+"),
                    text.fixed(interval.p_value, 4),
                    "" if first else text.fixed(p_holm, 4),
                ]
            )
        note = "mIoU and IoU in points (higher is better); of NLL and Brier a negative difference is better."
        return ["## Contrasts", "", note, "", *text.table(head, rows), *self._by_seed()] if rows else []

    def _by_seed(self) -> list[str]:
        """Primary contrasts seed by seed: how much one lucky or unlucky draw carries."""
        lines = []
        for a, b in self._primaries():
            told = []
            for seed in sorted(self._seeds(a, b)):
                own, other = ({seed: self.students[name][seed]} for name in (a, b))
                told.append(f"{100 * self.study.difference(own, other, MIOU).difference:+.1f} (seed {seed})")
            if told:
                lines += [f"{a} − {b}, mIoU seed by seed: {', '.join(told)}.", ""]
        return lines

    def _primaries(self) -> list[tuple[str, str]]:
        """The tier's primary contrast, and those that were it before."""
        return list(dict.fromkeys([self.tier.primary, ("ours-chosen", "real"), ("ours-views", "real")]))

    def _contrasts(self) -> list[tuple[str, str, str, Interval, bool]]:
        primary = self.tier.primary
        asked: list[tuple[tuple[str, str], str, Measure[Scores], bool]] = [(primary, "mIoU", MIOU, True)]
        whole = self._primaries()
        asked += [(pair, f"IoU {self.classes[1]}", class_iou(1), False) for pair in whole]
        asked += [(pair, "mIoU", MIOU, False) for pair in CONTRASTS if pair != primary]
        proper = (*whole, (primary[0], "hard"))
        asked += [(p, n, m, False) for n, m in (("NLL", NLL), ("Brier", BRIER)) for p in proper]
        found = []
        for (a, b), name, measure, first in asked:
            if self._seeds(a, b) and ((a, b) in whole or not self._told_by_chosen(a, b)):
                found.append((a, b, name, self.study.difference(self.students[a], self.students[b], measure), first))
        return found

    def _told_by_chosen(self, a: str, b: str) -> bool:
        """Whether arms that are chosen from these two are compared on all of their seeds."""
        chosen = (chosen_from(a), chosen_from(b) or b)
        return chosen in CONTRASTS and self._seeds(a, b) <= self._seeds(str(chosen[0]), chosen[1])

    def _seeds(self, a: str, b: str) -> set[int]:
        """Seeds of which two arms have a student of the same architecture."""
        one, two = self.students.get(a, {}), self.students.get(b, {})
        return {seed for seed in set(one) & set(two) if set(one[seed]) & set(two[seed])}

    def forest(self) -> list[figures.Interval]:
        """Differences in mIoU as rows of a figure, in points: of arms, then of generators as segmenters."""
        found = [
            (f"{a} − {b} ({len(self._seeds(a, b))})", interval, first)
            for a, b, measure, interval, first in self._contrasts()
            if measure == "mIoU"
        ]
        real = self.students.get("real", {})
        for name, gain in segmenters.gains(self.study, self.students).items():
            own, chosen = set(self.students[name]) & set(real), self.students.get(str(chosen_from(name)), {})
            if not own <= set(chosen):
                found.append((f"{name} − real ({len(own)})", gain, False))
        return [
            figures.Interval(name, 100 * i.difference, 100 * i.low, 100 * i.high, primary=first)
            for name, i, first in found
            if not math.isnan(i.low)
        ]

    def worth(self) -> list[str]:
        """How many labels the gain of an arm is worth."""
        if "real-all" not in self.tier.arms:
            return []
        if not {"real", "real-all"} <= set(self.students):
            return ["## Worth in labels", "", "Open: needs students of `real` and of `real-all`.", ""]
        few, many = (self._labels(n) for n in ("real", "real-all"))
        lines = []
        chosen = (name for name in CHOSEN if name.endswith("-last"))
        for name in ("ours", "ours-labelled", "relabel", "selftrain", "dakter", *KEPT, *VIEWS, *TAUGHT, *chosen, *LATE):
            if name not in self.students:
                continue
            arms: list[Students[Scores]] = [self.students[n] for n in (name, "real", "real-all")]
            seeds, architectures = block(arms)
            cut = [{s: {a: arm[s][a] for a in architectures} for s in seeds} for arm in arms]
            own, low, high = (self.study.estimate(arm, MIOU).mean for arm in cut)
            labels = worth_labels(own, (few, low), (many, high))
            words = (
                "undefined, as more labels did not score higher"
                if labels is None
                else f"more than {many}"
                if math.isinf(labels)
                else f"{labels:.0f}"
            )
            lines.append(f"- `{name}` with {few} labels scores as `real` would with: {words} ({text.counted(seeds)}).")
        note = f"By a straight line in log labels from `real` ({few} labels) to `real-all` ({many}), over all sensors."
        return ["## Worth in labels", "", note, "", *lines, ""]

    def _labels(self, arm: str) -> int:
        labels = self.tier.labels_of(ALL_ARMS[arm])
        record = next(r for s in self.tier.seeds if (r := self.records.get(data_name(labels, s))))
        return sum(record["figures"]["counts_by_sensor"]["train"].values())

    def segmenters(self) -> list[str]:
        """The generators' own p(y|x) beside the students of ``real``."""
        lines = []
        for name, found in segmenters.gains(self.study, self.students).items():
            words = text.interval(found.difference, found.low, found.high, 100, 1, "+")
            lines.append(f"- {name} − `real` (mean over its architectures): {words} points of mIoU.")
            lines += segmenters.kept(self.study, self.students, name)
        return ["## The generator as a segmenter", "", *lines, ""] if lines else []

    def look_alikes(self) -> list[str]:
        """How many look-alikes are taken for oil when as much oil is found as by ``real``."""
        rows = lookalikes.table(self.tier, self.study, self.classes, self.students, self.cells)
        note = (
            "A pixel is called oil if its probability of oil is at least a threshold, set for each student so that it "
            "finds the share of the oil pixels that the student of `real` with the same labels, architecture and seed "
            "finds by its likeliest class; `real` itself is judged by a threshold too. In per cent of pixels; the "
            "ratio is that of geometric means over students. Brackets: 95 % intervals over groups of near-duplicate "
            "test images and seeds, both paired, the threshold set anew in every draw; p for a ratio of 1, by Holm. "
            f"Bar: a quarter fewer than `real`, met if the whole interval is at or below {lookalikes.MOST_RATIO:g}."
        )
        if not rows:
            return []
        return [
            "## At matched oil recall, look-alike taken for oil",
            "",
            note,
            "",
            *text.table(lookalikes.HEADER, rows),
        ]

    def borders(self) -> list[str]:
        """What is left of the errors away from the outlines of masks."""
        rows = borders.table(self.study, self.cells)
        if not rows:
            return []
        return ["## Away from the borders of masks", "", borders.NOTE, "", *text.table(borders.HEADER, rows)]

    def fractions(self) -> list[str]:
        """Soft labels of val images against what simulated pixels truly hold."""
        found = {
            cell.name.removeprefix("generator-"): known
            for cell in self.done
            if cell.kind == "generator" and (known := self.records[cell.name]["figures"].get("against_fractions"))
        }
        rows = [fractions.row(name, known) for name, known in found.items()]
        note = (
            "A pixel of the val images, cross-entropy in nats, before a temperature; the fractions' own scores are the "
            "least there can be, and hard masks are the labels that generators learn from (their cross-entropy is "
            "finite only as probabilities are taken as at least 1e-7). Fractions are mixtures, not posteriors. The "
            "paper's label of the last step exists for generated images alone, whose fractions nobody knows: it cannot "
            "be scored so."
        )
        if not rows:
            return []
        return ["## Soft labels against true class fractions", "", note, "", *text.table(fractions.HEADER, rows)]

    def generators(self) -> list[str]:
        """Training and images of every generator."""
        rows = [
            curves.row(cell.name.removeprefix("generator-"), self.records[cell.name]["figures"])
            for cell in self.done
            if cell.kind == "generator" and "curve" in self.records[cell.name]["figures"]
        ]
        return ["## Generators", "", curves.NOTE, "", *text.table(curves.HEADER, rows)] if rows else []

    def curves(self) -> Markup:
        """How p(y given x) of every kind of generator fares while it trains."""
        found: dict[str, list[Sequence[Mapping[str, float]]]] = {}
        for cell in self.done:
            if cell.kind == "generator" and "curve" in self.records[cell.name]["figures"]:
                labels = "" if cell.labels == self.tier.num_labelled else f", {cell.labels or 'all'} labels"
                found.setdefault(f"{cell.generator}{labels}", []).append(self.records[cell.name]["figures"]["curve"])
        return curves.drawn(found)

    def _estimate(
        self, arm: Students[Scores], measure: Measure[Scores], factor: float, digits: int, *, most: float
    ) -> str:
        found = self.study.estimate(arm, measure).within(most)
        return text.interval(found.mean, found.low, found.high, factor, digits)

    def _mean(self, arm: str, key: str) -> float:
        """Of a list a class, over classes, sensors and students."""
        values = [table[sensor][key] for table in self.tables[arm] for sensor in self.study.groups]
        return float(np.nanmean(np.array(values, dtype=np.float64)))


def _open_cells(everything: Sequence[Cell], records: Records) -> list[str]:
    missing = [cell.name for cell in everything if cell.name not in records]
    return (
        ["## Open cells", "", f"{len(missing)}: " + ", ".join(f"`{name}`" for name in missing), ""] if missing else []
    )


def _provenance(records: Records) -> str:
    """Hardware, commits and dates of the records, each once."""
    parts = (sorted({str(record[key]) for record in records.values()}) for key in ("hardware", "date", "commit"))
    hardware, dates, commits = (", ".join(part) for part in parts)
    return f"Hardware: {hardware}. Dates: {dates}. Commits: {commits}." if records else "Nothing was run so far."
