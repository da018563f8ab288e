"""The figures of the report, each a function from plain numbers to inline SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from dakter.report.svg import Scale, axes, drawing, line, marker, padded, path, tag, text, tick_text

WIDTH = 360.0
CURVES_HEIGHT = 222.0
# Points drawn of a curve: more cannot be told apart at this width.
MAX_POINTS = 180


@dataclass(frozen=True)
class Curve:
    """A named curve; ``style`` is a class of the style sheet: ``control``, ``distilled`` or ``plain``."""

    name: str
    points: Sequence[tuple[float, float]]
    style: str = "plain"


def thinned(points: Sequence[tuple[float, float]], most: int = MAX_POINTS) -> list[tuple[float, float]]:
    """Means of equal runs of neighbours, ``most`` at most; points that are not finite are left out."""
    finite = [p for p in points if math.isfinite(p[0]) and math.isfinite(p[1])]
    run = math.ceil(len(finite) / most) if finite else 1
    groups = [finite[i : i + run] for i in range(0, len(finite), run)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def curves(
    title: str,
    series: Sequence[Curve],
    *,
    x_label: str = "step",
    y_scale: float = 1.0,
    span: Sequence[float] = (),
) -> Markup:
    """Curves over steps. The y axis is logarithmic where positive values span more than a factor of 20.

    ``span`` holds values, of the unit of the points, that the y axis must reach, so that panels side by side share one.
    """
    lines = [Curve(c.name, [(x, y * y_scale) for x, y in thinned(c.points)], c.style) for c in series]
    lines = [c for c in lines if c.points]
    if not lines:
        return Markup("")
    xs = [x for c in lines for x, _ in c.points]
    ys = [*(y for c in lines for _, y in c.points), *(y * y_scale for y in span)]
    log = min(ys) > 0 and max(ys) / min(ys) > 20
    low, high = (min(ys) / 1.1, max(ys) * 1.1) if log else padded(ys)
    x = Scale(min(0.0, min(xs)), max(xs), 44, WIDTH - 10)
    y = Scale(low, high, 182, 34, log)
    body = [path([(x(a), y(b)) for a, b in c.points], f"curve {c.style}") for c in lines]
    first, last = lines[0].points[0][1], lines[0].points[-1][1]
    label = f"{title}: from {first:.3g} to {last:.3g} over {max(xs):.0f} steps" if len(lines) == 1 else title
    caption = f"{title}, logarithmic" if log else title
    return drawing(WIDTH, CURVES_HEIGHT, label, axes(x, y, x_label, "", (5, 5)), text(0, 14, caption, "title"), *body)


@dataclass(frozen=True)
class Interval:
    """A row of a forest plot: ``value`` with ``low`` and ``high``, all in the unit of the axis."""

    name: str
    value: float
    low: float
    high: float
    primary: bool = False


def forest(title: str, rows: Sequence[Interval], *, x_label: str, digits: int = 1, most: int = 16) -> Markup:
    """Differences with their intervals about a line at zero; filled marks where the interval leaves zero out.

    Names are cut after ``most`` characters, for which the drawing makes room.
    """
    top, step, left = 36.0, 30.0, 6.5 * most
    width = WIDTH + left - 104
    bottom = top + step * len(rows)
    low, high = padded([0.0, *(r.low for r in rows), *(r.high for r in rows)], 0.04)
    x = Scale(low, high, left, left + 148)
    zero = x(0.0)
    parts = [text(0, 14, title, "title"), line(zero, top - 8, zero, bottom, "zero")]
    for at in x.ticks(4):
        parts += [
            line(x(at), bottom, x(at), bottom + 4, "axis"),
            text(x(at), bottom + 17, tick_text(at), "tick", "middle"),
        ]
    parts.append(line(x.start, bottom, x.end, bottom, "axis"))
    parts.append(text((x.start + x.end) / 2, bottom + 33, x_label, "tick", "middle"))
    words = []
    for i, row in enumerate(rows):
        at = top + step * (i + 0.5)
        shown = row.low > 0 or row.high < 0
        weight = "strong" if row.primary else ""
        numbers = f"{_signed(row.value, digits)} ({_signed(row.low, digits)} to {_signed(row.high, digits)})"
        words.append(f"{row.name} {numbers}")
        parts += [
            line(x(row.low), at, x(row.high), at, "whisker strong" if row.primary else "whisker"),
            marker(x(row.value), at, "diamond" if row.primary else "square", "mark" if shown else "mark open"),
            tag("text", _short(row.name, most), tag("title", row.name), x=0, y=at + 4, class_=f"label {weight}"),
            text(width, at - 2, _signed(row.value, digits), f"value {weight}", "end"),
            text(width, at + 11, f"{_signed(row.low, digits)} to {_signed(row.high, digits)}", "tick", "end"),
        ]
    return drawing(width, bottom + 40, f"{title}. {'; '.join(words)}", *parts)


def _signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


def _short(name: str, most: int) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def levels(title: str, rows: Sequence[tuple[str, Interval, Interval]], *, x_label: str) -> Markup:
    """Control (open circle) above distilled (filled circle) for each class, with intervals, from 0 to 100."""
    top, step = 36.0, 34.0
    bottom = top + step * len(rows)
    x = Scale(0, 100, 104, WIDTH - 14)
    parts = [text(0, 14, title, "title")]
    for at in x.ticks(6):
        parts += [
            line(x(at), top - 6, x(at), bottom, "rule"),
            text(x(at), bottom + 17, tick_text(at), "tick", "middle"),
        ]
    parts += [line(x.start, bottom, x.end, bottom, "axis"), text(x.end, bottom + 33, x_label, "tick", "end")]
    words = []
    for i, (name, control, distilled) in enumerate(rows):
        at = top + step * (i + 0.5)
        parts.append(tag("text", _short(name, 16), tag("title", name), x=0, y=at + 4, class_="label"))
        for row, offset, style in ((control, -6.0, "control"), (distilled, 6.0, "distilled")):
            parts.append(line(x(row.low), at + offset, x(row.high), at + offset, f"whisker {style}"))
            parts.append(marker(x(row.value), at + offset, "circle", f"mark {style}", 4.2))
        words.append(f"{name}: control {control.value:.1f}, distilled {distilled.value:.1f}")
    return drawing(WIDTH, bottom + 40, f"{title}. {'; '.join(words)}", *parts)


def reliability(name: str, arms: Sequence[tuple[str, Mapping[str, Sequence[float]]]]) -> Markup:
    """Frequency against confidence in bins; empty bins are left out. A calibrated model follows the diagonal."""
    size = 176.0
    x, y = Scale(0, 1, 30, size - 8), Scale(0, 1, size - 12, 30)
    parts = [text(0, 13, _short(name, 24), "title"), line(x(0), y(0), x(1), y(1), "zero dashed")]
    for at in (0.0, 0.5, 1.0):
        parts += [
            line(x(0), y(at), x(1), y(at), "rule"),
            text(x(0) - 5, y(at) + 4, f"{at:g}", "tick", "end"),
            text(x(at), y(0) + 15, f"{at:g}", "tick", "middle"),
        ]
    for style, bins in arms:
        points = [
            (x(c), y(f), n)
            for c, f, n in zip(bins["confidence"], bins["frequency"], bins["count"], strict=True)
            if n and math.isfinite(c) and math.isfinite(f)
        ]
        most = max((n for *_, n in points), default=1)
        parts.append(path([(a, b) for a, b, _ in points], f"curve thin {style}"))
        shape = "square" if style == "control" else "circle"
        # The marks' size tells the bins' weight; by logarithm, as sea outnumbers ships a thousandfold.
        parts += [
            marker(a, b, shape, f"mark {style}", 1.2 + 2.0 * math.log1p(n) / math.log1p(most)) for a, b, n in points
        ]
    return drawing(size, size + 8, f"Reliability of {name}: observed frequency against stated probability", *parts)


def trials(title: str, found: Sequence[Mapping[str, Any]], best_id: str | None, span: Sequence[float]) -> Markup:
    """Validation mIoU of each trial, a row an architecture; a cross for a trial stopped early, a ring for the best.

    ``span`` holds the values that the axis must reach, so that panels side by side share one.
    """
    scored = [t for t in found if t.get("val_miou") is not None and math.isfinite(t["val_miou"])]
    if not scored:
        return Markup("")
    rows = sorted({str(t["config"]["architecture"]) for t in scored})
    top, step = 34.0, 26.0
    bottom = top + step * len(rows)
    x = Scale(*padded([100 * value for value in span]), 104, WIDTH - 14)
    parts = [text(0, 14, title, "title")]
    for i, name in enumerate(rows):
        at = top + step * (i + 0.5)
        parts += [line(x.start, at, x.end, at, "rule"), text(0, at + 4, _short(name, 16), "label")]
    for at in x.ticks(5):
        parts += [
            line(x(at), bottom, x(at), bottom + 4, "axis"),
            text(x(at), bottom + 17, tick_text(at), "tick", "middle"),
        ]
    parts += [line(x.start, bottom, x.end, bottom, "axis"), text(x.end, bottom + 33, "val mIoU, %", "tick", "end")]
    for trial in scored:
        at = top + step * (rows.index(str(trial["config"]["architecture"])) + 0.5)
        where = x(100 * trial["val_miou"])
        shape, style = ("cross", "stroke") if trial["stopped_early"] else ("circle", "mark dot")
        parts.append(marker(where, at, shape, style, 3.6))
        if str(trial["id"]) == best_id:
            parts.append(marker(where, at, "circle", "ring", 8.0))
    best = max(100 * t["val_miou"] for t in scored)
    stopped = sum(bool(t["stopped_early"]) for t in scored)
    label = f"{title}: {len(scored)} trials, {stopped} stopped early, best val mIoU {best:.1f} %"
    return drawing(WIDTH, bottom + 40, label, *parts)


def bars(title: str, rows: Sequence[tuple[str, float, str]], *, x_label: str) -> Markup:
    """Horizontal bars from zero: name, value, the value in words."""
    top, step = 30.0, 26.0
    bottom = top + step * len(rows)
    x = Scale(0, max((value for _, value, _ in rows), default=1.0) or 1.0, 104, WIDTH - 78)
    parts = [text(0, 14, title, "title"), line(x.start, top, x.start, bottom, "axis")]
    for i, (name, value, words) in enumerate(rows):
        at = top + step * i
        width = max(x(value) - x.start, 1.0)
        parts += [
            text(0, at + 17, _short(name, 16), "label"),
            tag("rect", x=x.start, y=at + 6, width=width, height=14, class_="bar"),
            text(x(value) + 6, at + 17, words, "value"),
        ]
    parts.append(text(x.start, bottom + 16, x_label, "tick"))
    words_all = "; ".join(f"{name} {words}" for name, _, words in rows)
    return drawing(WIDTH, bottom + 24, f"{title}. {words_all}", *parts)
