"""The report: one ``report.html`` that needs nothing beside it, and the same facts as ``report.json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dakter.evaluate.summary import JOINT_MODEL
from dakter.report import making, page, sections
from dakter.report.inputs import ARM_NAMES, ReportInputs
from dakter.report.verdict import Verdict, candidate_of, direction, verdict

SCHEMA_VERSION = 1


def build(inputs: ReportInputs) -> tuple[str, dict[str, Any]]:
    """The report as (HTML text, JSON-able facts); equal inputs give equal results.

    Raises:
        DataError: galleries that fit neither each other nor the class table (at construction of ``inputs``).
    """
    said = verdict(inputs)
    facts = _facts(inputs, said)
    html = page.render(
        "report.html",
        title=inputs.title,
        date=inputs.date,
        verdict=said,
        facts=facts,
        classes=page.legend(inputs.classes),
        arms=ARM_NAMES,
        beside=inputs.beside(),
        gain=sections.gain(inputs),
        scores=sections.scores(inputs),
        calibration=sections.calibration(inputs),
        decision=inputs.decision,
        generated=sections.generated(inputs),
        predictions=sections.predictions(inputs),
        data=making.data(inputs),
        speckle=making.speckle(inputs),
        generator=making.generator(inputs),
        students=making.students(inputs),
        stages=making.stages(inputs),
        settings_yaml=inputs.settings_yaml,
    )
    return html, facts


def _facts(inputs: ReportInputs, said: Verdict) -> dict[str, Any]:
    """report.json: numbers as the stages wrote them (shares in 0..1), nothing rounded."""
    b, b_source = inputs.balance()
    contrast = inputs.primary_contrast()
    evaluated = inputs.evaluation.get("arms", {})
    manifest = inputs.tiles_manifest
    num_labelled, labelled = inputs.num_labelled(), inputs.sweep.get("labelled_digest")
    return {
        "schema_version": SCHEMA_VERSION,
        "title": inputs.title,
        "date": inputs.date,
        "outcome": said.outcome,
        "headline": said.headline,
        "gain": None if contrast is None else {**contrast, "shown": direction(contrast)},
        "contrasts": [dict(c) for c in inputs.contrasts()],
        "joint_model_contrasts": [dict(c) for c in inputs.contrasts(JOINT_MODEL)],
        "class_names": list(inputs.classes.names),
        "arms": {arm: _arm(table) for arm, table in evaluated.items()},
        "latency": dict(inputs.latency) or None,
        "candidate": candidate_of(inputs),
        "decision": dict(inputs.decision) or None,
        "decision_in_words": said.decision,
        "test": inputs.evaluation.get("test"),
        "b": b,
        "b_source": b_source,
        "steps": {
            "generator": inputs.train_steps(),
            "students": {
                student["id"]: student.get("steps")
                for arm in inputs.sweep.get("arms", {}).values()
                for student in arm["students"]
            },
        },
        "samples": {
            "generated": inputs.num_generated(),
            **({} if num_labelled is None else {"labelled": num_labelled}),
            "tiles": dict(manifest.get("counts", {})),
        },
        "stages": {name: _stage(inputs, name) for name in inputs.stage_names()},
        "digests": {
            "tiles": manifest.get("digest"),
            "model": inputs.sweep.get("model_digest") or inputs.figure_of("train", "model_digest"),
            "corpus": inputs.sweep.get("corpus_digest"),
            **({"labelled": labelled} if labelled else {}),
            "sweep": inputs.evaluation.get("sweep_digest"),
            "test": inputs.evaluation.get("test", {}).get("digest"),
        },
        "leakage": manifest.get("leakage"),
        "speckle": dict(inputs.speckle) or None,
    }


def _arm(arm: Mapping[str, Any]) -> dict[str, Any]:
    """Scores of an arm; of its students what tells them apart, without the reliability tables."""
    about = ("id", "seed", "architecture", "num_parameters", "evaluations", "temperature")
    kept = (*about, "miou", "iou", "nll", "brier", "ece")
    scores = {key: value for key, value in arm.items() if key != "students"}
    return {**scores, "students": [{k: s[k] for k in kept if k in s} for s in arm["students"]]}


def _stage(inputs: ReportInputs, name: str) -> dict[str, Any] | None:
    record = inputs.stages.get(name)
    if not record:
        return None
    return {
        "minutes": record["seconds"] / 60,
        "samples_per_second": inputs.figure_of(name, "samples_per_second"),
        "figures": record.get("figures", {}),
        "settings_digest": record.get("settings_digest"),
        "versions": record.get("versions", {}),
        "hardware": record.get("hardware", {}),
        "settings": record.get("settings", {}),
    }
