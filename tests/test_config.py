"""Strict settings: what is unknown, mistyped or out of range fails and says what to do."""

from __future__ import annotations

from typing import ClassVar

import pytest
import yaml

from dakter import config
from dakter.config import Config, setting
from dakter.errors import ConfigError


class Inner(Config):
    learning_rate: float = setting(1e-3, "step size", gt=0)
    widths: tuple[int, ...] = setting((8, 16), "channels", unit="channels")


class Outer(Config):
    steps: int = setting(10, "steps", ge=1, le=100)
    name: str | None = setting(None, "a name")
    inner: Inner = Inner()


def test_plain_data_builds_nested_settings_with_tuples() -> None:
    got = config.load(Outer, {"steps": 3, "inner": {"widths": [4, 8]}})
    assert got.steps == 3
    assert got.inner.widths == (4, 8)
    assert got.inner.learning_rate == 1e-3


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"step": 3}, ["step", "3", "did you mean steps"]),
        ({"inner": {"learning_rat": 1}}, ["inner.learning_rat", "did you mean inner.learning_rate"]),
        ({"steps": 0}, ["steps", "0", "greater than or equal to 1"]),
        ({"steps": "3"}, ["steps", "'3'", "valid integer"]),
        ({"steps": True}, ["steps", "valid integer"]),
        ({"inner": {"learning_rate": float("nan")}}, ["inner.learning_rate", "nan", "finite"]),
    ],
)
def test_a_bad_setting_is_named_with_value_and_remedy(data: dict[str, object], told: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load(Outer, data)
    for text in told:
        assert text in str(caught.value)


def test_every_fault_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        config.load(Outer, {"steps": 0, "nmae": "x"})
    assert "steps" in str(caught.value)
    assert "nmae" in str(caught.value)


def test_digest_follows_values_not_order_or_defaults_written_out() -> None:
    a = config.load(Outer, {"steps": 10, "inner": {"learning_rate": 1e-3}})
    assert a.digest() == Outer().digest()
    assert config.load(Outer, {"steps": 11}).digest() != a.digest()


def test_round_trip_through_yaml() -> None:
    settings = config.load(Outer, {"steps": 7, "inner": {"widths": [1]}})
    assert config.load(Outer, config.read_yaml(settings.to_yaml(), where="text")) == settings


@pytest.mark.parametrize(("text", "value"), [("1e-4", 1e-4), ("2E3", 2e3), ("-1.5e+2", -150.0), ("e4", "e4"), ("3", 3)])
def test_numbers_of_a_file_are_those_that_people_mean(text: str, value: object) -> None:
    found = config.read_yaml(f"rate: {text}", where="text")["rate"]
    assert (found, type(found)) == (value, type(value))


def test_text_that_looks_like_such_a_number_stays_text_in_a_file() -> None:
    class Named(config.Config):
        name: str

    assert config.load(Named, config.read_yaml(Named(name="123456e7").to_yaml(), where="text")).name == "123456e7"


def test_lists_of_a_flag_are_those_of_a_file() -> None:
    assert config.parse_value("rates", "[1e-4, 1e-3]") == [1e-4, 1e-3]


def test_tables_may_be_merged_into_others() -> None:
    text = "a: &a {x: 1}\ndeep:\n  b: &b {<<: *a, x: 2}\nc: {<<: *b, <<: *a}\n"
    assert config.read_yaml(text, where="text") == yaml.safe_load(text)
    with pytest.raises(ConfigError, match="not readable as YAML"):
        config.read_yaml("name: {{ var }}\n", where="text")


def test_a_key_that_stands_twice_is_refused_where_it_does() -> None:
    with pytest.raises(ConfigError, match=r"mine\.yaml: not readable as YAML: 'steps' stands twice(.|\n)*line 3"):
        config.read_yaml("train:\n  steps: 1\n  steps: 2\n", where="mine.yaml")
    assert config.read_yaml("a: {steps: 1}\nb: {steps: 1}\n", where="text") == {"a": {"steps": 1}, "b": {"steps": 1}}


def test_merge_lays_tables_over_each_other() -> None:
    base = {"a": {"b": 1, "c": 2}, "d": 3}
    assert config.merge(base, {"a": {"c": 5}}) == {"a": {"b": 1, "c": 5}, "d": 3}
    assert base["a"] == {"b": 1, "c": 2}


def test_differences_name_the_leaf_and_both_values() -> None:
    assert config.differences({"a": {"b": 1, "c": 0}}, {"a": {"b": 2, "c": 0}}) == ["a.b: 2 there, 1 asked for"]


@pytest.mark.parametrize(
    ("text", "value"),
    [("64", 64), ("1e-4", 1e-4), ("true", True), ("[1, 2]", [1, 2]), ("null", None), ("sentinel", "sentinel")],
)
def test_flag_text(text: str, value: object) -> None:
    assert config.parse_value("x", text) == value


@pytest.mark.parametrize("text", ["2026-11-22", "20261122", "no", "runs/a #1"])
def test_text_settings_take_text_as_it_is(text: str) -> None:
    assert config.parse_value("out", text, "str") == text
    assert config.parse_value("root", "null", "str | None") is None


def test_flags_list_every_leaf_with_unit_and_default() -> None:
    flags = {flag.key: flag for flag in config.flags(Outer)}
    assert set(flags) == {"steps", "name", "inner.learning_rate", "inner.widths"}
    assert flags["inner.widths"].unit == "channels"
    assert flags["inner.widths"].default == (8, 16)


class _Grown(Config):
    later: ClassVar[tuple[str, ...]] = ("new",)
    old: int = setting(1, "of old")
    new: int = setting(0, "came later")


class _Holder(Config):
    inner: _Grown = _Grown()


def test_fields_that_came_later_are_written_only_where_they_differ_from_their_defaults() -> None:
    """Digests of settings stand in records; a new field that changes nothing must not void them, nested or not."""
    assert _Grown().dump() == {"old": 1}
    assert _Grown(new=2).dump() == {"old": 1, "new": 2}
    assert _Holder().dump() == {"inner": {"old": 1}}
    assert _Holder(inner=_Grown(new=2)).to_yaml() == "inner:\n  old: 1\n  new: 2\n"
    assert config.load(_Holder, _Holder(inner=_Grown(new=2)).dump()).inner.new == 2
    assert "inner.new" in [flag.key for flag in config.flags(_Holder)]
