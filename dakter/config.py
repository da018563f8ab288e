"""Typed, strict settings: unknown keys fail, values out of range fail, and both say what to do.

Settings are pydantic models built from ``setting(...)`` fields. ``resolve`` merges, later over earlier: the
defaults in code, a preset or file, flags. ``flags`` lists every leaf with its unit and default, for ``--help``.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)
from pydantic.fields import FieldInfo

from dakter.errors import ConfigError

C = TypeVar("C", bound="Config")


class Config(BaseModel):
    """Base of all settings: frozen, no unknown keys, no NaN or infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)

    # Fields that came when models and records had been made, by their defaults as if they were not there. Only what
    # differs from them is written, so that digests, identities and what is compared with them stay as they were.
    later: ClassVar[tuple[str, ...]] = ()

    @model_serializer(mode="wrap")
    def _without_what_came_later(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        still = {name for name in self.later if getattr(self, name) == type(self).model_fields[name].default}
        return {key: value for key, value in handler(self).items() if key not in still}

    def dump(self) -> dict[str, Any]:
        """Plain JSON-able data, complete with defaults but for those of ``later``."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        return yaml.dump(self.dump(), Dumper=_Dumper, sort_keys=False)

    def digest(self) -> str:
        """sha256 over the canonical JSON of every setting."""
        return digest_json(self.dump())


def setting(default: Any, description: str, *, unit: str = "", **bounds: Any) -> Any:
    """A field with a description and a unit; ``bounds`` are pydantic's (``ge``, ``lt``, ...)."""
    return Field(default=default, description=description, json_schema_extra={"unit": unit}, **bounds)


def digest_json(data: Any) -> str:
    """sha256 (hex) over canonical JSON: sorted keys, no blanks."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def load(cls: type[C], data: Mapping[str, Any], *, where: str = "settings") -> C:
    """Build ``cls`` from plain data.

    Types are strict ("3" is no number, 1 no truth value), as JSON means them, so lists become tuples.

    Raises:
        ConfigError: names every offending key, its value, what was expected and the nearest known key.
    """
    try:
        text = json.dumps(data)
    except TypeError as error:
        raise ConfigError(
            f"{where}: {error}; expected plain numbers, text, lists and tables (a date as text, in quotes)"
        ) from error
    try:
        return cls.model_validate_json(text, strict=True)
    except ValidationError as error:
        found = error.errors()
        # A list is told as too short where its rows are at fault.
        told = [
            i for i in found if i["type"] != "too_short" or not any(_below(i["loc"], other["loc"]) for other in found)
        ]
        raise ConfigError(f"{where}: " + "\n".join(_explain(cls, item) for item in told)) from None


def _below(loc: Sequence[int | str], other: Sequence[int | str]) -> bool:
    return len(other) > len(loc) and other[: len(loc)] == loc


def _explain(cls: type[Config], item: Any) -> str:
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        known, name, hint = _settings_beside(cls, item["loc"]), str(item["loc"][-1]), ""
        if known:
            hint = f"expected {', '.join(known)}"
        else:
            known, name, hint = [flag.key for flag in flags(cls)] + sections(cls), key, "--help lists every setting"
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else hint
        return f"unknown setting {key} (value {item['input']!r}); {hint}"
    if item["type"] == "missing":
        return f"setting {key} is missing; expected a value, it has no default"
    if not key:  # a rule of the whole table
        return f"expected {item['msg'].removeprefix('Value error, ')}"
    expected = item["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    shown = repr(item["input"])
    if item["type"] == "string_type":
        expected += " (text that means something else to YAML, such as #ffffff, needs quotes there)"
    if "password" in expected:  # an address with a password in it must not reach a log
        shown = "not shown"
    return f"setting {key} is {shown}; expected {expected}. Change it, or leave it out for the default"


def _settings_beside(cls: type[Config], loc: Sequence[int | str]) -> list[str]:
    """Names that a row of a list may have, where ``loc`` is in one; empty elsewhere."""
    for part in loc[:-1]:
        if isinstance(part, int):
            continue
        annotation: Any = cls.model_fields[part].annotation if part in cls.model_fields else None
        inner = [
            one for one in (annotation, *get_args(annotation)) if isinstance(one, type) and issubclass(one, Config)
        ]
        if not inner:
            return []
        cls = inner[0]
    return list(cls.model_fields) if any(isinstance(part, int) for part in loc) else []


@dataclass(frozen=True)
class Flag:
    """One leaf setting: its dotted key, description, unit, default and type as text."""

    key: str
    description: str
    unit: str
    default: Any
    type_name: str


def _is_section(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, Config)


def sections(cls: type[Config]) -> list[str]:
    """Names of the nested tables directly below ``cls``."""
    return [name for name, field in cls.model_fields.items() if _is_section(field)]


def flags(cls: type[Config], prefix: str = "") -> Iterator[Flag]:
    """Every leaf setting of ``cls``, depth first, in the order of declaration."""
    for name, field in cls.model_fields.items():
        annotation = field.annotation
        if _is_section(field):
            assert isinstance(annotation, type)
            yield from flags(annotation, f"{prefix}{name}.")
            continue
        extra = field.json_schema_extra
        unit = str(extra.get("unit", "")) if isinstance(extra, dict) else ""
        default = field.get_default(call_default_factory=True)
        kind = str(annotation).replace("typing.", "") if not isinstance(annotation, type) else annotation.__name__
        yield Flag(f"{prefix}{name}", field.description or "", unit, default, kind)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``over`` laid upon ``base``, table by table; neither is changed."""
    out = dict(base)
    for key, value in over.items():
        below = out.get(key)
        out[key] = merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return out


def differences(wanted: Mapping[str, Any], found: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Leaves in which two tables differ, each as ``"key: <found> there, <wanted> asked for"``; empty if none does."""
    lines: list[str] = []
    for key in sorted({*wanted, *found}):
        a, b = wanted.get(key), found.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: {b!r} there, {a!r} asked for")
    return lines


def nest(key: str, value: Any) -> dict[str, Any]:
    """``nest("a.b", 1)`` is ``{"a": {"b": 1}}``."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return dict(value)


def parse_value(key: str, text: str, kind: str = "") -> Any:
    """A flag's text by the setting's type (``Flag.type_name``).

    Text settings take it as it is (``null`` for none where allowed); others as YAML: ``64``, ``true``, ``[1, 2]``,
    ``null``; 1e-4 is a number, as people mean it.
    """
    if kind in ("str", "str | None"):
        return None if text == "null" and kind != "str" else text
    with suppress(ValueError):
        if "e" in text.lower():
            return float(text)
    try:
        return yaml.load(text, _StrictLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"setting {key} is {text!r}; expected a YAML value such as 64, true or [1, 2]") from error


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key that stands twice in a table, where YAML would take the last without a word."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} stands twice", key.start_mark)
            seen.add(key.value)
        return node


class _Dumper(yaml.SafeDumper):
    """Puts quotes around text that ``_StrictLoader`` would take for a number."""


# YAML 1.1 wants a point in it, and would take 1e-4 for text.
for _kind in (_StrictLoader, _Dumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
    )


def read_yaml(text: str, *, where: str) -> dict[str, Any]:
    """A YAML document that must be a table; raises ConfigError naming ``where``."""
    try:
        data = yaml.load(text, _StrictLoader)
    except yaml.YAMLError as error:
        misread = isinstance(error, (yaml.scanner.ScannerError, yaml.parser.ParserError))
        hint = "; text that begins with # or holds ': ' needs quotes" if misread else ""
        raise ConfigError(f"{where}: not readable as YAML: {error}{hint}") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: holds a {type(data).__name__}; expected a table of settings")
    return data
