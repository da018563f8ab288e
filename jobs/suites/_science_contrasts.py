"""Which arms of suite ``science`` are compared with which. Computes nothing."""

from __future__ import annotations

from jobs.suites._science_arms import ABLATIONS, DRAWN, KEPT, LAST, POOLED, RARE, TAUGHT, VIEWS, base_of
from jobs.suites._science_chosen import CHOICES

_RIVALS = ("real", "selftrain", "dakter", "hard", "real-last", "selftrain-last", "dakter-last", "hard-last")

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
    *((f"{ours}-chosen", other) for ours in ("ours", "relabel") for other in ("real", "selftrain", "dakter")),
    ("ours-chosen", "relabel-chosen"),
    *((f"{ours}-chosen-last", other) for ours in ("ours", "relabel") for other in _RIVALS),
    ("ours-chosen-last", "relabel-chosen-last"),
    *(("ours-labelled-views-last", other) for other in _RIVALS),
    ("ours-late-last", "relabel-late-last"),
    ("ours-late-last", "ours-chosen-last"),
    *((f"{ours}-late-last", "real") for ours in ("ours", "relabel")),
    *((f"ours-{choice}-last", f"relabel-{choice}-last") for choice in CHOICES),
    *(("ours-mean-teacher-last", other) for other in _RIVALS),
    ("ours-rendered-last", "ours-described-last"),
    *((f"ours-{drawn}-last", "relabel-described-last") for drawn in ("described", "rendered", "mapped")),
    *((name, "real") for name in DRAWN),
    *((name, other) for name in RARE for other in ("real", "selftrain")),
    *((name, other) for name in POOLED for other in ("real", "selftrain", name.replace("-pooled", ""))),
    *(
        (f"{ours}-chosen-pooled-last", other)
        for ours in ("ours", "relabel")
        for other in ("real", "selftrain", f"{ours}-chosen-last")
    ),
    ("selftrain-last", "real-last"),
    *((name, name.removesuffix("-last")) for name in (*LAST, "ours-chosen-last", "relabel-chosen-last")),
    *((name, base_of(name)) for name in ABLATIONS),
)
