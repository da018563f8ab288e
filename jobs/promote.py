"""Hold the evaluation's candidate against the champion and promote it if it wins; exit status 3 if it does not.

The candidate is the student of highest mIoU on val. ``promotion.candidate`` may put the joint model's own p(y | x) in
its place, or let it compete on val; whoever stands is held against the same rules, and its version says what it costs.

Under the model's lock the candidate is registered (the same package once) and aliased ``challenger``, the champion is
read, both are held against the rules, and ``previous`` and ``champion`` move. The decision is logged before anything
moves, so that the same command completes what a crash cut short.
"""

from __future__ import annotations

import datetime
import json
import logging
import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dakter import storage
from dakter.config import digest_json
from dakter.errors import ConflictError, GateError
from dakter.evaluate.summary import JOINT_MODEL
from dakter.promotion import Evidence, PromotionRules, decide
from dakter.registry import Version
from dakter.tracking import TrackedRun, Tracker, TrackingConfig
from jobs._candidate import ROLLED_BACK_TAG, Candidate, facts, pack, read_candidate, unpack
from jobs._cli import Job, JobSettings, Plan, Stop, Verb, main
from jobs.evaluate import confusion_of

log = logging.getLogger("dakter.jobs.promote")

DECISION_TAG = "dakter.decision"  # document of the latest decision
PROMOTED_TAG = "dakter.promoted_by"  # document of the decision that made it champion
# (raw images float32 (B, C, H, W) -> probabilities float32 (B, K, H, W)), settings, model=name -> confusion, groups
Scorer = Callable[..., tuple[np.ndarray, np.ndarray]]


class PromoteSettings(JobSettings):
    """Sections that promotion reads."""

    promotion: PromotionRules = PromotionRules()
    tracking: TrackingConfig = TrackingConfig()


def promote(settings: PromoteSettings, stop: Stop, score_champion: Scorer = confusion_of) -> dict[str, Any]:
    """Decide and act on it; returns what stands in ``decision.json``, with ``already_done`` if nothing was left to do.

    Args:
        score_champion: scores a champion on the frozen test set if its run holds no result on it; by default the
            evaluation job's, the only reader of test.
    """
    candidate = read_candidate(settings, settings.promotion.candidate)
    tracker = Tracker.open(settings.tracking, settings.out)
    registry = tracker.registry
    stop.check("nothing was registered")
    with registry.lock(_owner()) as still_ours:
        run = tracker.run(f"promotion:{candidate.digest}", name=f"promote {candidate.record['id']}")
        try:
            version = _register(settings, tracker, run, candidate)
            champion = registry.alias("champion")
            decision = _standing(settings, run, candidate, version, champion)
            already_done = decision is not None
            if decision is None:
                decision = _decide(settings, tracker, candidate, version, champion, score_champion)
                name = _document(settings, candidate, version, champion)
                run.document(decision, name)
                # a later no must not stand in for the yes that made it champion
                yes = {PROMOTED_TAG: name} if decision["promoted"] else {}
                registry.tag_version(version, {DECISION_TAG: name, **yes})
            if champion is None or champion.number != version.number:
                still_ours()
                registry.set_alias("challenger", version)
                if decision["promoted"]:
                    already_done = False
                    if champion is not None:
                        registry.set_alias("previous", champion)
                        still_ours()
                    registry.set_alias("champion", version)
            run.tags({"dakter.promoted": str(decision["promoted"]).lower()})
        except BaseException:
            run.end("FAILED")
            raise
        run.end()
    storage.put_json(storage.join(settings.place("promotion"), "decision.json"), decision)
    log.info("version %s is %s", version.number, "champion" if decision["promoted"] else "not promoted")
    return decision | ({"already_done": True} if already_done else {})


def run(settings: PromoteSettings, stop: Stop) -> dict[str, Any]:
    """``promote``; its no is told as GateError."""
    decision = promote(settings, stop)
    if not decision["promoted"]:
        against = [reason["text"] for reason in decision["reasons"] if reason["blocking"] and not reason["passed"]]
        raise GateError(
            f"{'decided before: ' if decision.get('already_done') else ''}version {decision['version']} "
            f"({decision['candidate']['id']}) is not promoted. {' '.join(against)} All reasons: "
            f"{storage.join(settings.place('promotion'), 'decision.json')}"
        )
    return {
        key: decision[key]
        for key in ("promoted", "version", "model_name", "test_uses", "already_done")
        if key in decision
    }


def rollback(settings: PromoteSettings, stop: Stop) -> dict[str, Any]:
    """Swap ``champion`` and ``previous``; the one rolled back is refused until its tag is removed."""
    tracker = Tracker.open(settings.tracking, settings.out)
    registry = tracker.registry
    stop.check("nothing was moved")
    with registry.lock(_owner()) as still_ours:
        champion, previous = registry.alias("champion"), registry.alias("previous")
        if champion is None or previous is None or champion.number == previous.number:
            raise ConflictError(
                f"{registry.name}: champion is {_name(champion)}, previous is {_name(previous)}; expected two versions "
                "to swap: there is nothing to roll back to (`promote status` shows the aliases)"
            )
        now = _now()
        document = {"from": facts(champion), "to": facts(previous), "when": now, "by": _owner()}
        for version in (champion, previous):
            tracker.attach(version.run_id).document(document, f"promotion/rollback-{now.replace(':', '')}.json")
        registry.tag_version(champion, {ROLLED_BACK_TAG: now})
        registry.tag_version(previous, {ROLLED_BACK_TAG: None})
        still_ours()
        registry.set_alias("champion", previous)  # first: whoever serves the champion has the good one at once
        registry.set_alias("previous", champion)
    log.info("rolled back from version %s to version %s", champion.number, previous.number)
    return {"rolled_back": True, **status(settings, stop)}


def status(settings: PromoteSettings, stop: Stop) -> dict[str, Any]:
    """The versions behind the aliases, in the log and as data."""
    registry = Tracker.open(settings.tracking, settings.out).registry
    aliases = {name: registry.alias(name) for name in ("champion", "previous", "challenger")}
    for name, version in aliases.items():
        back = version.tags.get(ROLLED_BACK_TAG) if version else None
        log.info("%s: %s%s", name, _name(version), f", rolled back on {back}" if back else "")
    return {"model_name": registry.name} | {
        name: None if version is None else facts(version) for name, version in aliases.items()
    }


def _register(settings: PromoteSettings, tracker: Tracker, run: TrackedRun, candidate: Candidate) -> Version:
    """The version of this package: the standing one, or logged and registered now with its lineage."""
    standing = tracker.registry.find(candidate.digest)
    if standing is not None:
        return standing
    record, identity = candidate.record, candidate.identity
    run.dataset("tiles", settings.place("tiles"), identity["tiles_digest"], "train, val and test")
    if "corpus_digest" in identity:
        run.dataset("corpus", settings.place("corpus"), identity["corpus_digest"], "train")
    if "labelled_digest" in identity:
        run.dataset("labelled", settings.place("labelled"), identity["labelled_digest"], "train")
    tags = {"dakter.student": record["id"], "dakter.arm": record["arm"]}
    tags |= {f"dakter.{key}": str(value) for key, value in candidate.cost.items()}
    run.tags(tags | ({"dakter.student_run": record["run_id"]} if record.get("run_id") else {}))
    run.params({key: record[key] for key in ("architecture", "encoder", "seed") if key in record})
    run.metrics({f"test/{key}": record[key] for key in ("miou", "nll", "brier") if record.get(key) is not None})
    run.metrics({key: value for key, value in candidate.cost.items() if not isinstance(value, str)})
    run.file(pack(candidate.confusion, candidate.groups), candidate.showing_name)
    with tempfile.TemporaryDirectory(prefix="dakter-student-") as folder:
        return tracker.log_student(
            run,
            candidate.package,
            candidate.package.example(),
            num_classes=len(candidate.package.class_names),
            weights=storage.download_folder(candidate.where, Path(folder)),
            metadata=identity,
            digest=candidate.digest,
            tags=tags | {"dakter.reads": _reads(candidate)},
            kind=JOINT_MODEL if record["arm"] == JOINT_MODEL else "student",
        )


def _decide(
    settings: PromoteSettings,
    tracker: Tracker,
    candidate: Candidate,
    version: Version,
    champion: Version | None,
    score_champion: Scorer,
) -> dict[str, Any]:
    own = candidate.evidence(
        version, candidate.confusion, candidate.groups, own=True, rolled_back=version.tags.get(ROLLED_BACK_TAG)
    )
    rival: Evidence | None = None
    if champion is not None and champion.number != version.number:
        showing = _champion_showing(settings, tracker, candidate, champion, score_champion)
        rival = candidate.evidence(champion, *showing, own=False)
    verdict = decide(own, rival, settings.promotion)
    return {
        "promoted": verdict.promote,
        "candidate": {**facts(version), "id": candidate.record["id"], "arm": candidate.record["arm"]}
        | {"scores": dict(own.scalars), "made_from": dict(own.provenance), "cost": candidate.cost},
        "champion": None if champion is None else facts(champion),
        "reasons": verdict.to_json(),
        "test_uses": own.test_uses,
        "test_digest": own.test_digest,
        "rules": settings.promotion.dump(),
        "model_name": version.name,
        "version": version.number,
        "decided": _now(),
        "by": _owner(),
    }


def _champion_showing(
    settings: PromoteSettings, tracker: Tracker, candidate: Candidate, champion: Version, score: Scorer
) -> tuple[np.ndarray, np.ndarray]:
    """The champion's confusion on this test set: as logged with its run, else scored now and logged."""
    reads = champion.tags.get("dakter.reads", _reads(candidate))
    if reads != _reads(candidate):
        raise ConflictError(
            f"{champion.name}: the champion has bands, classes or values {reads}; the candidate {_reads(candidate)}. "
            "They answer different questions: set another tracking.model_name"
        )
    run = tracker.attach(champion.run_id)
    data = run.read(candidate.showing_name)
    if data is not None:
        return unpack(data)
    log.info("scoring the champion, version %s, on this test set", champion.number)
    graph = tracker.load_student(champion)

    def predict(raw: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return graph(torch.from_numpy(raw)).numpy()

    confusion, groups = score(predict, settings, model=champion.digest)
    run.file(pack(confusion, groups), candidate.showing_name)
    return confusion, groups


def _standing(
    settings: PromoteSettings, run: TrackedRun, candidate: Candidate, version: Version, champion: Version | None
) -> dict[str, Any] | None:
    """The decision taken before on the same candidate, champion, test set and rules, or None."""
    name = _document(settings, candidate, version, champion)
    if champion is not None and champion.number == version.number:
        name = version.tags.get(PROMOTED_TAG, name)  # of when it became champion, whatever the rules are now
    data = run.read(name)
    return None if data is None else dict(json.loads(data))


def _document(settings: PromoteSettings, candidate: Candidate, version: Version, champion: Version | None) -> str:
    question = {
        "test": candidate.test["digest"],
        # who stands is known by the run that keeps the document
        "rules": {key: value for key, value in settings.promotion.dump().items() if key != "candidate"},
        "champion": None if champion is None else champion.number,
        "rolled_back": version.tags.get(ROLLED_BACK_TAG),
    }
    return f"promotion/decision-{digest_json(question)[:16]}.json"


def _reads(candidate: Candidate) -> str:
    """What must be equal for two models to stand in for one another."""
    return json.dumps([candidate.identity[key] for key in ("bands", "class_names", "value_range")])


def _name(version: Version | None) -> str:
    return "none" if version is None else f"version {version.number} ({version.tags.get('dakter.student', 'unknown')})"


def _owner() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def plan(settings: PromoteSettings) -> Plan:
    """For ``--dry-run``."""
    model = settings.tracking.model_name
    return Plan(
        reads=[
            f"evaluation {settings.place('evaluation')}/evaluation.json, confusion.npz",
            f"the candidate ({settings.promotion.candidate}) below {settings.place('sweep')} or in "
            f"{settings.place('model')}, the manifest of {settings.place('tiles')}",
            f"the champion of {model} and its result on the same test set",
        ],
        computes=[
            "the candidate's graph, from raw images to probabilities",
            f"paired intervals at {settings.promotion.level:g} from {settings.promotion.num_resamples} resamples, "
            "and every rule of the promotion settings",
        ],
        writes=[
            f"a version of {model} and the alias challenger; champion and previous if it wins",
            f"{settings.place('promotion')}/decision.json",
        ],
    )


JOB = Job(
    "promote",
    __doc__ or "",
    PromoteSettings,
    run,
    plan,
    verbs={
        "rollback": Verb("make the previous champion champion again", rollback),
        "status": Verb("show champion, previous and challenger", status),
    },
)

if __name__ == "__main__":
    from jobs.promote import JOB  # its importable self: classes in __main__ do not pickle for Ray

    raise SystemExit(main(JOB))
