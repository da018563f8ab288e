"""A few words of SVG: escaped elements, scales and axes, coloured by the page's own style sheet.

Figures are inline SVG of a nominal width near 360, the width of a phone, so that their text is readable unscaled;
on a wide screen they stand side by side as small multiples instead of growing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from markupsafe import Markup, escape


def number(value: float) -> str:
    """A coordinate with two digits at most: short, and the same on every machine."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if value else "0"


def tag(name: str, *children: str, **attributes: str | float) -> Markup:
    """One element. ``class_`` and ``stroke_width`` become ``class`` and ``stroke-width``; text is escaped."""
    parts = [
        f' {key.rstrip("_").replace("_", "-")}="{escape(value if isinstance(value, str) else number(value))}"'
        for key, value in attributes.items()
    ]
    inner = "".join(escape(child) for child in children)
    return Markup(f"<{name}{''.join(parts)}>{inner}</{name}>" if inner else f"<{name}{''.join(parts)}/>")


def drawing(width: float, height: float, label: str, *children: str) -> Markup:
    """A whole figure; ``label`` is what it shows, in words, for those who cannot see it."""
    box = f"0 0 {number(width)} {number(height)}"
    return tag("svg", *children, viewBox=box, role="img", aria_label=label, class_="figure")


def side_by_side(
    figures: Sequence[Sequence[Markup]], width: float, height: float, label: str, gap: float = 24
) -> Markup:
    """Rows of figures as one, each figure ``width`` by ``height``; what they show goes into ``label``."""
    parts = [
        tag(
            "svg",
            figure,
            x=column * (width + gap),
            y=row * (height + gap),
            width=width,
            height=height,
            overflow="visible",
        )
        for row, several in enumerate(figures)
        for column, figure in enumerate(several)
    ]
    columns = max(len(several) for several in figures)
    return drawing(columns * (width + gap) - gap, len(figures) * (height + gap) - gap, label, *parts)


def standalone(figure: Markup) -> str:
    """A figure as a file of its own: with the namespace and, of the pages' style sheet, the rules for figures."""
    sheet = resources.files("dakter.report").joinpath("page.css").read_text("utf-8")
    root = re.search(r":root \{.*?\n\}", sheet, re.DOTALL)
    assert root is not None
    rules = [root.group().replace("light dark", "light"), *re.findall(r"^\.figure.*$", sheet, re.MULTILINE)]
    style = "<style>" + "\n".join([*rules, "svg { background: var(--paper); }"]) + "</style>"
    opening, rest = str(figure).split(">", 1)
    return f'{opening} xmlns="http://www.w3.org/2000/svg">{style}{rest}\n'


def text(x: float, y: float, content: str, style: str = "", anchor: str = "start") -> Markup:
    return tag("text", content, x=x, y=y, text_anchor=anchor, class_=style)


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> Markup:
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=style)


def path(points: Sequence[tuple[float, float]], style: str) -> Markup:
    steps = " ".join(f"{'L' if i else 'M'}{number(x)} {number(y)}" for i, (x, y) in enumerate(points))
    return tag("path", d=steps, class_=style)


def marker(x: float, y: float, shape: str, style: str, size: float = 4.0) -> Markup:
    """A mark of one of the shapes circle, square, diamond, cross: arms and outcomes differ by shape, not hue alone."""
    if shape == "circle":
        return tag("circle", cx=x, cy=y, r=size, class_=style)
    if shape == "square":
        side = size * 1.8
        return tag("rect", x=x - side / 2, y=y - side / 2, width=side, height=side, class_=style)
    if shape == "diamond":
        s = size * 1.35
        return tag("path", d=_closed([(x, y - s), (x + s, y), (x, y + s), (x - s, y)]), class_=style)
    if shape == "cross":
        s = size * 0.85
        d = f"M{number(x - s)} {number(y - s)}L{number(x + s)} {number(y + s)}"
        return tag("path", d=f"{d}M{number(x - s)} {number(y + s)}L{number(x + s)} {number(y - s)}", class_=style)
    raise AssertionError(f"unknown marker shape {shape!r}")


def _closed(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{number(x)} {number(y)}" for x, y in points) + "Z"


@dataclass(frozen=True)
class Scale:
    """Maps data ``low..high`` to positions ``start..end``; logarithmic on request (then ``low`` > 0)."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = self.low, self.high, value
        if self.log:
            low, high, at = math.log(low), math.log(high), math.log(max(value, self.low))
        share = (at - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.end - self.start)

    def ticks(self, most: int = 5) -> list[float]:
        """Round values within the range, ``most`` at most (steps of 1, 2 or 5; 1, 2, 5 of each decade if log)."""
        if not self.log:
            return _round_ticks(self.low, self.high, most)
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for digits in ((1, 2, 5), (1, 3), (1,)):
            found = [m * 10.0**d for d in decades for m in digits if self.low <= m * 10.0**d <= self.high]
            if len(found) <= most + 1:
                return found
        return found[:: math.ceil(len(found) / most)]


def _round_ticks(low: float, high: float, most: int) -> list[float]:
    span = high - low
    if span <= 0:
        return [low]
    exponent = math.floor(math.log10(span / most))
    for factor in (1, 2, 5, 10, 20, 50):
        step = factor * 10.0**exponent
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first + 1 <= most:
            return [i * step for i in range(first, last + 1)]
    return [low, high]


def tick_text(value: float) -> str:
    """A tick in the fewest characters: 20k, 0.05, −5."""
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:.6g}".replace("-", "−")


def padded(values: Sequence[float], share: float = 0.06) -> tuple[float, float]:
    """The range of ``values`` with a margin, never empty."""
    low, high = min(values), max(values)
    margin = (high - low) * share or max(abs(high) * 0.05, 1e-3)
    return low - margin, high + margin


def axes(x: Scale, y: Scale, x_label: str, y_label: str, most: tuple[int, int] = (5, 5)) -> Markup:
    """Light horizontal rules, ticks and labels; the y label stands above the axis, where it reads level."""
    bottom, left, right = y.start, x.start, x.end
    parts = [line(left, bottom, right, bottom, "axis")]
    for at in y.ticks(most[1]):
        parts += [line(left, y(at), right, y(at), "rule"), text(left - 6, y(at) + 4, tick_text(at), "tick", "end")]
    for at in x.ticks(most[0]):
        parts += [
            line(x(at), bottom, x(at), bottom + 4, "axis"),
            text(x(at), bottom + 17, tick_text(at), "tick", "middle"),
        ]
    parts.append(text(right, bottom + 33, x_label, "tick", "end"))
    if y_label:
        parts.append(text(0, y.end - 10, y_label, "tick"))
    return Markup("").join(parts)
