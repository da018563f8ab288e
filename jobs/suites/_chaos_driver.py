"""One driver of the chaos suite: jobs/generate.py with the chaos sampler in place of a model.

``python -m jobs.suites._chaos_driver '{"trace": ..., ...}' --out ... [flags of jobs/generate.py]``
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Mapping
from typing import Any

from jobs._cli import Job, Stop, main
from jobs._generation import GenerateSettings, plan, run_with
from jobs.suites._chaos_sampler import ChaosSampler


def job(sampler: Mapping[str, Any]) -> Job[GenerateSettings]:
    """The job ``generate``; ``sampler`` are the settings of its ChaosSampler."""

    def run(settings: GenerateSettings, stop: Stop) -> Mapping[str, Any]:
        return run_with(settings, stop, functools.partial(ChaosSampler, **sampler))

    return Job("generate", __doc__ or "", GenerateSettings, run, plan)


if __name__ == "__main__":
    raise SystemExit(main(job(json.loads(sys.argv[1])), sys.argv[2:]))
