"""The templates of infra/ on moto's AWS, and a small reading of IAM policies, since moto enforces none."""

from __future__ import annotations

import fnmatch
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import boto3
from cfnlint.decode.cfn_yaml import load as load_template
from moto import mock_aws

ROOT = Path(__file__).parents[2]
REGION, ACCOUNT = "us-east-1", "123456789012"
BASE, MLFLOW = ROOT / "infra" / "base.yaml", ROOT / "infra" / "mlflow.yaml"
# What moto 5.2 cannot make from a template. It is left out there, and tests read it from the template instead.
BEYOND_MOTO = {
    "AWS::S3::BucketPolicy",
    "AWS::SecretsManager::Secret",
    "AWS::ServiceDiscovery::PrivateDnsNamespace",
    "AWS::ServiceDiscovery::Service",
}


def template(path: Path) -> dict[str, Any]:
    """A template as plain data, its short forms (``!Ref``) written out."""
    plain: dict[str, Any] = json.loads(json.dumps(load_template(str(path))))
    return plain


def for_moto(path: Path) -> str:
    """A template without what moto cannot make; references to that become an ARN of its name."""
    plain = template(path)
    gone = {name for name, entry in plain["Resources"].items() if entry["Type"] in BEYOND_MOTO}
    plain["Resources"] = {name: _without(entry, gone) for name, entry in plain["Resources"].items() if name not in gone}
    return json.dumps(plain)


def _without(node: Any, gone: set[str]) -> Any:
    if isinstance(node, dict):
        if node.get("Ref") in gone:
            return f"arn:aws:stand-in:::{node['Ref']}"
        if "Fn::GetAtt" in node and node["Fn::GetAtt"][0] in gone:
            return f"arn:aws:stand-in:::{node['Fn::GetAtt'][0]}"
        if isinstance(node.get("Fn::Sub"), str) and any(f"${{{name}}}" in node["Fn::Sub"] for name in gone):
            return "stand-in-for-a-reference"
        return {key: _without(value, gone) for key, value in node.items()}
    return [_without(value, gone) for value in node] if isinstance(node, list) else node


@contextmanager
def aws() -> Iterator[None]:
    """An empty AWS in this process; no call leaves the machine, whatever the environment says."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}
    with mock.patch.dict(os.environ, kept | {"AWS_DEFAULT_REGION": REGION}, clear=True), mock_aws():
        yield


def deploy(name: str, path: Path, **parameters: str) -> dict[str, str]:
    """Create a stack and return its outputs."""
    client = boto3.client("cloudformation")
    client.create_stack(
        StackName=name,
        TemplateBody=for_moto(path),
        Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()],
        Capabilities=["CAPABILITY_IAM"],
    )
    stack = client.describe_stacks(StackName=name)["Stacks"][0]
    assert stack["StackStatus"] == "CREATE_COMPLETE"
    return {entry["OutputKey"]: entry["OutputValue"] for entry in stack["Outputs"]}


def resource(stack: str, logical_id: str) -> str:
    """Physical id of a resource of a stack."""
    client = boto3.client("cloudformation")
    found = client.describe_stack_resource(StackName=stack, LogicalResourceId=logical_id)
    return str(found["StackResourceDetail"]["PhysicalResourceId"])


@dataclass(frozen=True)
class Statement:
    """One allowance, with its actions and resources as lists."""

    sid: str
    actions: tuple[str, ...]
    resources: tuple[str, ...]
    conditions: Mapping[str, Mapping[str, Any]]

    @classmethod
    def read(cls, entry: Mapping[str, Any]) -> Statement:
        assert entry["Effect"] == "Allow", entry
        assert not {"NotAction", "NotResource", "Principal"} & set(entry), entry
        return cls(entry["Sid"], _list(entry["Action"]), _list(entry["Resource"]), entry.get("Condition", {}))


def statements(role: str) -> list[Statement]:
    """Everything that a role was given: its own policies and the managed ones attached to it."""
    iam = boto3.client("iam")
    documents = [
        iam.get_role_policy(RoleName=role, PolicyName=name)["PolicyDocument"]
        for name in iam.list_role_policies(RoleName=role)["PolicyNames"]
    ]
    for attached in iam.list_attached_role_policies(RoleName=role)["AttachedPolicies"]:
        policy = iam.get_policy(PolicyArn=attached["PolicyArn"])["Policy"]
        version = iam.get_policy_version(PolicyArn=policy["Arn"], VersionId=policy["DefaultVersionId"])
        documents.append(version["PolicyVersion"]["Document"])
    return [Statement.read(entry) for document in documents for entry in _plain(document)["Statement"]]


def renamed(given: Sequence[Statement], bucket: str, other: str) -> list[Statement]:
    """The same statements for another bucket."""
    return [replace(entry, resources=tuple(name.replace(bucket, other) for name in entry.resources)) for entry in given]


def allowed(given: Sequence[Statement], action: str, on: str, **context: str) -> bool:
    """Whether a role may do ``action`` on the ARN ``on``; ``context``: condition keys, with ``_`` for other signs."""
    return any(
        any(fnmatch.fnmatchcase(action, pattern) for pattern in statement.actions)
        and any(fnmatch.fnmatchcase(on, pattern) for pattern in statement.resources)
        and all(
            _holds(operator, key, _list(values), context)
            for operator, keys in statement.conditions.items()
            for key, values in keys.items()
        )
        for statement in given
    )


def _holds(operator: str, key: str, values: tuple[str, ...], context: Mapping[str, str]) -> bool:
    found = context.get(key.replace(":", "_").replace("/", "_").replace("-", "_"))
    if operator.endswith("IfExists") and found is None:
        return True
    if found is None:
        return False
    match operator.removesuffix("IfExists"):
        case "StringEquals" | "Bool":
            return found in values
        case "StringLike":
            return any(fnmatch.fnmatchcase(found, value) for value in values)
    raise AssertionError(f"{operator}: not understood by this reading")


def _list(value: Any) -> tuple[str, ...]:
    return tuple(value) if isinstance(value, list) else (str(value),)


def _plain(document: Any) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(document) if isinstance(document, str) else document
    return plain
