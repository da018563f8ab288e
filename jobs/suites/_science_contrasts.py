"""Which arms of suite ``science`` are compared with which. Computes nothing."""

from __future__ import annotations

from jobs.suites._science_arms import ABLATIONS, KEPT, LAST, TAUGHT, VIEWS, base_of
from jobs.suites._science_chosen import CHOSEN

# Contrasts beside the tier's primary one; a page has those of which it has students.
CONTRASTS = (
    ("ours", "dakter"),
    ("ours", "selftrain"),
    ("ours", "relabel"),
    ("ours-labelled", "real"),
    ("ours-labelled", "dakter"),
    ("dakter", "real"),
    ("hard", "real"),
    ("jointnet", "real"),
    ("pseudo", "real"),
    ("selftrain", "real"),
    ("relabel", "real"),
    ("real-all", "real"),
    *((kept, other) for kept in KEPT for other in ("real", "selftrain", "dakter", kept.removesuffix("-kept"))),
    *((seen, other) for seen in VIEWS for other in ("real", "selftrain", "dakter", seen.replace("-views", "-kept"))),
    *((taught, other) for taught in TAUGHT for other in ("real", taught.replace("mean-teacher", "views"))),
    ("ours-views", "relabel-views"),
    ("ours-mean-teacher", "relabel-mean-teacher"),
    *((a, b) for a in CHOSEN for b in ("real", "selftrain", "dakter")),
    *((a, f"{b}-last") for a in CHOSEN if a.endswith("-last") for b in ("real", "selftrain", "dakter", "hard")),
    *((f"{name}-last", "real-last") for name in ("selftrain", "dakter", "hard")),
    ("ours-chosen", "relabel-chosen"),
    ("ours-chosen-last", "relabel-chosen-last"),
    *((name, name.removesuffix("-last")) for name in (*LAST, "ours-chosen-last", "relabel-chosen-last")),
    *((name, base_of(name)) for name in ABLATIONS),
)
