"""The record of a run that is kept in results/, and its rows of the README's table.

``python -m dakter.report.record runs/demo/report/report.json results/demo.json --hardware "..." --commit abc1234``
takes the figures of a report, leaves out places and settings, and prints the rows.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from dakter import storage

_OF_AN_ARM = ("miou", "iou", "nll", "brier")
_KEPT = ("title", "date", "b", "b_source", "steps", "samples", "gain", "contrasts", "candidate", "test", "digests")


def record_of(report: Mapping[str, Any], *, hardware: str, commit: str) -> dict[str, Any]:
    """What of ``report.json`` is kept, with the hardware in words and the commit that made it."""
    decision = report["decision"]
    return {
        **{key: report[key] for key in _KEPT},
        **({"joint_model_contrasts": found} if (found := report.get("joint_model_contrasts")) else {}),
        "hardware": hardware,
        "commit": commit,
        "arms": {arm: {key: scores[key] for key in _OF_AN_ARM} for arm, scores in report["arms"].items()},
        "students": {
            arm: [{key: row[key] for key in ("id", "architecture", "miou")} for row in scores["students"]]
            for arm, scores in report["arms"].items()
        },
        "decision": {"promoted": decision["promoted"], "reasons": [row["text"] for row in decision["reasons"]]},
        "stages": {
            name: {key: stage[key] for key in ("minutes", "samples_per_second") if stage.get(key) is not None}
            for name, stage in report["stages"].items()
        },
    }


def rows_of(record: Mapping[str, Any]) -> list[str]:
    """Markdown table rows: one for each arm, one for each difference from ``real``."""
    rows = []
    for arm, scores in record["arms"].items():
        oil = next((row for row in scores["iou"] if "oil" in row["class"]), None)
        oil_text = _interval(oil["mean"], oil["low"], oil["high"]) if oil else "–"
        miou = scores["miou"]
        rows.append(
            f"| {record['title']} | {arm} | {_interval(miou['mean'], miou['low'], miou['high'])} | {oil_text} | "
            f"{scores['nll']:.3f} | {scores['brier']:.3f} |"
        )
    for name, contrasts in (
        ("difference", record["contrasts"]),
        ("joint-model, difference", record.get("joint_model_contrasts", [])),
    ):
        if contrasts:
            rows.append(_difference_row(record["title"], name, contrasts))
    return rows


def _difference_row(title: str, name: str, contrasts: Sequence[Mapping[str, Any]]) -> str:
    def first(metric: str, of: str = "") -> Mapping[str, Any] | None:
        return next((c for c in contrasts if c["metric"] == metric and of in (c["class"] or "")), None)

    shares = [
        _interval(c["difference"], c["low"], c["high"], "+") if c else "" for c in (first("miou"), first("iou", "oil"))
    ]
    scores = [f"{c['difference']:+.3f}" if c else "" for c in (first("nll"), first("brier"))]
    return f"| {title} | {name} | {' | '.join([*shares, *scores])} |"


def _interval(mean: float, low: float | None, high: float | None, sign: str = "") -> str:
    if low is None or high is None:
        return f"{100 * mean:{sign}.1f}"
    return f"{100 * mean:{sign}.1f} ({100 * low:{sign}.1f} to {100 * high:{sign}.1f})"


def main(argv: Sequence[str] | None = None) -> int:
    """Write the record and print the rows."""
    parser = argparse.ArgumentParser(prog="python -m dakter.report.record", description=__doc__)
    parser.add_argument("report", help="report.json of a run")
    parser.add_argument("record", help="where the record goes, e.g. results/demo.json")
    parser.add_argument("--hardware", required=True, help="in words, e.g. '2 cores of an AMD EPYC, no GPU'")
    parser.add_argument("--commit", required=True, help="commit that made the run")
    options = parser.parse_args(argv)
    record = record_of(storage.read_json(options.report), hardware=options.hardware, commit=options.commit)
    storage.put_json(options.record, record)
    sys.stdout.write("\n".join(rows_of(record)) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
