"""The picture of the pipeline for the README, drawn the same every time.

``python -m dakter.report.overview dakter/report/overview.svg`` writes it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from dakter.report.svg import number, tag, text

WIDTH, HEIGHT = 1000.0, 396.0
BOX_W, BOX_H = 184.0, 104.0
TOP = 62.0
# Room for the widest of the fonts that the style names: a reader's system has one of them.
XS = (16.0, 277.0, 538.0, 800.0)

# The page that shows it may be light or dark, and an image in a README knows only the reader's system: so it carries
# its own quiet paper and both palettes.
STYLE = """
svg { --paper: #fcfcfa; --box: #ffffff; --ink: #1c1f22; --soft: #565c62; --hair: #c9cbc5; --accent: #0a5aa8; }
@media (prefers-color-scheme: dark) {
  svg { --paper: #14171a; --box: #1d2126; --ink: #e8e8e4; --soft: #a9afb5; --hair: #444a51; --accent: #74b6ff; }
}
text { font: 13px system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; fill: var(--ink); }
.name { font-size: 15px; font-weight: 650; }
.line, .flow { font-size: 12px; fill: var(--soft); }
.job { font: 11.5px ui-monospace, "SF Mono", Menlo, Consolas, monospace; fill: var(--accent); }
.paper { fill: var(--paper); }
.box { fill: var(--box); stroke: var(--hair); stroke-width: 1.25; }
.arrow { fill: none; stroke: var(--soft); stroke-width: 1.5; }
.head { fill: var(--soft); }
.real { fill: none; stroke: var(--accent); stroke-width: 1.75; stroke-dasharray: 5 4; }
.realhead { fill: var(--accent); }
.strong { fill: var(--accent); }
"""


@dataclass(frozen=True)
class Box:
    """One stage: its name, what it does in two lines, the job that runs it."""

    name: str
    lines: tuple[str, str]
    job: str


UPPER = (
    Box("Labelled SAR", ("few images, class maps:", "train, val, test apart"), "jobs/prepare.py"),
    Box("Joint diffusion", ("one model of image", "and label together"), "jobs/train.py"),
    Box("Synthetic corpus", ("new pairs, a probability", "per class and pixel"), "jobs/generate.py"),
    Box("Distillation sweep", ("many networks, against", "a real-only control"), "jobs/distill.py"),
)
LOWER = (
    Box("Gate and registry", ("the interval decides:", "champion or challenger"), "jobs/promote.py"),
    Box("Evaluation", ("IoU, calibration,", "bootstrap intervals"), "jobs/evaluate.py"),
)
# What flows along each arrow of the upper row.
FLOWS = ("pairs, b", "model", "soft labels")
LOWER_Y = 236.0
LOWER_XS = XS[2:]


def _box(box: Box, x: float, y: float) -> Markup:
    parts = [
        tag("rect", x=x, y=y, width=BOX_W, height=BOX_H, rx=7, class_="box"),
        text(x + 14, y + 27, box.name, "name"),
        text(x + 14, y + 48, box.lines[0], "line"),
        text(x + 14, y + 64, box.lines[1], "line"),
        text(x + 14, y + 89, box.job, "job"),
    ]
    return Markup("").join(parts)


def _arrow(points: tuple[tuple[float, float], ...], style: str = "arrow", head: str = "head") -> Markup:
    """A line through ``points`` (horizontal and vertical pieces) with a head at its end."""
    (x0, y0), (x1, y1) = points[-2], points[-1]
    dx, dy = (x1 > x0) - (x1 < x0), (y1 > y0) - (y1 < y0)
    corners = [
        (x1, y1),
        (x1 - 8 * dx - 4.5 * dy, y1 - 8 * dy - 4.5 * dx),
        (x1 - 8 * dx + 4.5 * dy, y1 - 8 * dy + 4.5 * dx),
    ]
    drawn = [*points[:-1], (x1 - 6 * dx, y1 - 6 * dy)]
    d = " ".join(f"{'L' if i else 'M'}{number(x)} {number(y)}" for i, (x, y) in enumerate(drawn))
    triangle = "M" + "L".join(f"{number(x)} {number(y)}" for x, y in corners) + "Z"
    return tag("path", d=d, class_=style) + tag("path", d=triangle, class_=head)


def overview() -> str:
    """The picture as SVG text."""
    middle = TOP + BOX_H / 2
    parts = [tag("rect", x=0, y=0, width=WIDTH, height=HEIGHT, rx=10, class_="paper")]
    parts += [_box(box, x, TOP) for box, x in zip(UPPER, XS, strict=True)]
    for i, words in enumerate(FLOWS):
        start, end = XS[i] + BOX_W, XS[i + 1]
        parts += [_arrow(((start + 5, middle), (end - 4, middle)))]
        parts += [text((start + end) / 2, middle - 10, words, "flow", "middle")]
    first, last = XS[0] + BOX_W / 2, XS[3] + BOX_W / 2
    # The real pairs go to the students as well, above the generator.
    parts += [
        _arrow(((first, TOP - 4), (first, 36.0), (last, 36.0), (last, TOP - 4)), "real", "realhead"),
        text((first + last) / 2, 26, "real pairs, to both arms", "strong", "middle"),
        _arrow(((last, TOP + BOX_H + 5), (last, LOWER_Y - 4))),
        text(last - 10, TOP + BOX_H + 42, "students of both arms", "flow", "end"),
        _arrow(((LOWER_XS[1] - 5, LOWER_Y + BOX_H / 2), (LOWER_XS[0] + BOX_W + 4, LOWER_Y + BOX_H / 2))),
        text((LOWER_XS[0] + BOX_W + LOWER_XS[1]) / 2, LOWER_Y + BOX_H / 2 - 10, "scores", "flow", "middle"),
    ]
    parts += [_box(box, x, LOWER_Y) for box, x in zip(LOWER, LOWER_XS, strict=True)]
    # Test is cut off in the first stage and read in evaluation alone.
    under = LOWER_Y + BOX_H + 18
    parts += [
        _arrow(
            ((first, TOP + BOX_H + 5), (first, under), (last, under), (last, LOWER_Y + BOX_H + 4)), "real", "realhead"
        ),
        text((first + last) / 2, under + 20, "test pairs, read by evaluation alone", "strong", "middle"),
        _arrow(((LOWER_XS[0] - 5, LOWER_Y + BOX_H / 2), (XS[1] + BOX_W + 4, LOWER_Y + BOX_H / 2))),
        text((XS[1] + BOX_W + LOWER_XS[0]) / 2, LOWER_Y + BOX_H / 2 - 10, "decision", "flow", "middle"),
        _box(Box("Report", ("what was gained, with", "its interval, and why"), "report.html"), XS[1], LOWER_Y),
    ]
    label = (
        "Labelled SAR pairs train a joint diffusion model; it draws a synthetic corpus with soft labels; a sweep "
        "distils it and the real pairs into students, against a real-only control; evaluation reads test alone; a gate "
        "promotes the better model into the registry, and a report says why."
    )
    box = f"0 0 {number(WIDTH)} {number(HEIGHT)}"
    return str(
        tag(
            "svg",
            tag("title", label),
            tag("style", Markup(STYLE)),
            *parts,
            xmlns="http://www.w3.org/2000/svg",
            viewBox=box,
            width=WIDTH,
            height=HEIGHT,
            role="img",
        )
        + "\n"
    )


def main(arguments: list[str]) -> int:
    """Write the picture to the one path given; returns the exit status."""
    if len(arguments) != 1:
        print("use: python -m dakter.report.overview FILE.svg", file=sys.stderr)
        return 2
    Path(arguments[0]).write_text(overview(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
