"""infra/permissions.yaml and the policies of the deployed templates: neither holds anything that the other lacks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import yaml
from aws_stacks import ROOT, STACKS, Roles, template

# Actions for which AWS knows no narrower resource than "*".
WITHOUT_RESOURCE = {"ec2:DescribeInstances", "ecr:GetAuthorizationToken"}
LIST: dict[str, Any] = yaml.safe_load((ROOT / "infra" / "permissions.yaml").read_text())


@dataclass(frozen=True)
class Grant:
    """One role may take one action on one resource, under a condition (JSON, ``{}`` if there is none)."""

    role: str
    action: str
    on: str
    condition: str


def filled(node: Any, names: Mapping[str, str]) -> Any:
    """The same with every ``${Name}`` replaced; KeyError for one that there is not."""
    if isinstance(node, dict):
        return {key: filled(value, names) for key, value in node.items()}
    if isinstance(node, list):
        return [filled(value, names) for value in node]
    return re.sub(r"\$\{(.*?)\}", lambda found: names[found[1]], node)


def as_json(condition: Mapping[str, Any]) -> str:
    return json.dumps(condition, sort_keys=True)


def listed(names: Mapping[str, str]) -> list[Grant]:
    """What the list allows, in the order in which it stands there."""
    return [
        Grant(role, entry["action"], on, as_json(filled(entry.get("if", {}), names)))
        for entry in LIST["permissions"]
        for role in entry["roles"]
        for on in filled(entry["resources"], names)
    ]


def granted(roles: Roles) -> set[Grant]:
    """What the deployed policies allow."""
    return {
        Grant(role, action, on, as_json(statement.conditions))
        for role, given in roles.statements.items()
        for statement in given
        for action in statement.actions
        for on in statement.resources
    }


def test_what_is_granted_is_listed_and_what_is_listed_is_granted(roles: Roles) -> None:
    wanted, found = listed(roles.names), granted(roles)
    assert found - set(wanted) == set(), "granted by a template, and not on the list"
    assert set(wanted) - found == set(), "on the list, and granted by no template"
    assert len(wanted) == len(set(wanted)), "on the list twice"


def test_every_role_is_taken_by_its_one_service(roles: Roles) -> None:
    trust = {
        role: [{"Effect": "Allow", "Principal": {"Service": service}, "Action": "sts:AssumeRole"}]
        for role, service in LIST["assumed_by"].items()
    }
    assert roles.assumed_by == trust


def test_the_list_is_narrow_and_says_why() -> None:
    assert set(LIST) == {"assumed_by", "permissions"}
    for entry in LIST["permissions"]:
        assert set(entry) | {"if"} == {"roles", "action", "resources", "if", "why"}, entry
        assert re.fullmatch(r"[a-z0-9]+:[A-Za-z]+", entry["action"]), "one action by its name, no pattern"
        assert ("*" in entry["resources"]) == (entry["action"] in WITHOUT_RESOURCE), entry
        assert len(entry["why"].split()) >= 3, entry


def allowances(node: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Where in a template something is allowed: keys and numbers that lead there."""
    if isinstance(node, dict):
        if node.get("Effect") == "Allow":
            yield place
        for key, value in node.items():
            yield from allowances(value, (*place, key))
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from allowances(value, (*place, str(number)))


@pytest.mark.parametrize("stack", STACKS)
def test_nothing_is_allowed_but_to_roles(stack: str) -> None:
    """No bucket, repository, secret or endpoint has a policy of its own that would open it past the roles."""
    resources = template(STACKS[stack])["Resources"]
    kinds = {resources[place[0]]["Type"] for place in allowances(resources)}
    assert kinds == {"AWS::IAM::Role", "AWS::IAM::Policy"} | (
        {"AWS::IAM::ManagedPolicy"} if stack == "dakter" else set()
    )
    for name, entry in resources.items():
        if entry["Type"] in ("AWS::IAM::Policy", "AWS::IAM::ManagedPolicy"):
            assert not {"Users", "Groups"} & set(entry["Properties"]), name
        assert entry["Type"] not in ("AWS::IAM::User", "AWS::IAM::Group", "AWS::IAM::AccessKey"), name
