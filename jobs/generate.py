"""Generate the synthetic corpus: image and soft-label pairs from the joint model, fanned out over Ray Data actors."""

from __future__ import annotations

from jobs import _corpus_verbs as verbs
from jobs._cli import Job, Verb, main
from jobs._generation import GenerateSettings, plan, run, run_with

__all__ = ["JOB", "GenerateSettings", "run", "run_with"]

JOB = Job(
    "generate",
    "Generate image and soft-label pairs with the joint model into a corpus.",
    settings=GenerateSettings,
    run=run,
    plan=plan,
    verbs={
        "quote": Verb(
            "make a few shards, then tell hours, bytes and money of the whole with a range; once the whole is made, "
            "hold the quote against it",
            verbs.tell_quote,
            verbs.QuoteOptions,
        ),
        "status": Verb("where the corpus stands, from storage alone", verbs.show_status),
        "verify": Verb(
            "hash every stored byte anew; names what is missing, truncated, altered, duplicated or foreign",
            verbs.verify,
            verbs.VerifyOptions,
        ),
        "regenerate": Verb(
            "draw one sample's micro-batch again and compare it with what is stored",
            verbs.regenerate,
            verbs.RegenerateOptions,
        ),
        "finalise": Verb("write the manifest over what is committed now, be it the whole or not", verbs.finalise),
    },
)

if __name__ == "__main__":
    from jobs.generate import JOB  # its importable self: classes in __main__ do not pickle for Ray

    raise SystemExit(main(JOB))
