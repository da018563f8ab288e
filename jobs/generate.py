"""Generate the synthetic corpus: image and soft-label pairs from the joint model, fanned out over Ray Data actors."""

from __future__ import annotations

from jobs._cli import Job, main
from jobs._corpus_verbs import VERBS
from jobs._generation import GenerateSettings, plan, run, run_with

__all__ = ["JOB", "GenerateSettings", "run", "run_with"]

JOB = Job(
    "generate",
    "Generate image and soft-label pairs with the joint model into a corpus.",
    settings=GenerateSettings,
    run=run,
    plan=plan,
    verbs=VERBS,
)

if __name__ == "__main__":
    from jobs.generate import JOB  # its importable self: classes in __main__ do not pickle for Ray

    raise SystemExit(main(JOB))
