"""Pages that stand alone: the frame, style sheet and pieces that they share, and how values are written on them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import resources
from typing import Any

import jinja2

from dakter.report.verdict import percent, points, signed
from dakter.schema import ClassTable


def render(template: str, **values: Any) -> str:
    """A page from one of the templates beside this file; text in ``values`` is escaped, unknown names fail."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_template),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "points": points,
        "signed": signed,
        "fixed": _fixed,
        "thousands": _thousands,
        "plain": plain,
        "words": lambda key: re.sub(r"^num ", "number of ", str(key).replace("_", " ")),
    }
    return environment.get_template(template).render(**values)


def _template(name: str) -> str:
    return resources.files("dakter.report").joinpath(name).read_text("utf-8")


def _fixed(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "−")


def _thousands(value: int | None) -> str:
    return "–" if value is None else f"{value:,}".replace(",", "\u202f")


def legend(table: ClassTable) -> list[dict[str, str]]:
    """Class names with their colours, for the key."""
    return [{"name": name, "colour": colour} for name, colour in zip(table.names, table.colours, strict=True)]


def plain(value: Any) -> str:
    """Any JSON value as short text: digits grouped, lists joined, tables as ``key value``."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\u202f") if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return f"{value:.4g}".replace("-", "−")
    if isinstance(value, Mapping):
        return ", ".join(f"{str(k).replace('_', ' ')} {plain(v)}" for k, v in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        shown = ", ".join(plain(v) for v in value[:8])
        return (f"{shown} and {len(value) - 8} more" if len(value) > 8 else shown) or "none"
    return str(value)
