"""The templates of infra/ on moto's AWS, and a small reading of IAM policies, since moto enforces none."""

from __future__ import annotations

import fnmatch
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import boto3
from cfnlint.decode.cfn_yaml import load as load_template
from moto import mock_aws
from s3_recorder import Request

ROOT = Path(__file__).parents[1]
REGION, ACCOUNT = "us-east-1", "123456789012"
BASE, MLFLOW = ROOT / "infra" / "base.yaml", ROOT / "infra" / "mlflow.yaml"
STACKS = {"dakter": BASE, "dakter-mlflow": MLFLOW}
JOB_ROLES = ("WorkerRole", "HeadRole")  # those of the nodes on which jobs run
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


@dataclass(frozen=True)
class Roles:
    """What the roles of both stacks were given, once they were deployed.

    Attributes:
        statements: of each role, by its name in the templates.
        assumed_by: role -> what may take it.
        bucket: the name that the stack gave to its bucket.
        names: what the templates' ``${...}`` have become.
    """

    statements: Mapping[str, Sequence[Statement]]
    assumed_by: Mapping[str, list[Any]]
    bucket: str
    names: Mapping[str, str]

    def on(self, role: str, bucket: str) -> list[Statement]:
        """The statements of a role, as if ``bucket`` were the stack's own."""
        return [
            replace(entry, resources=tuple(name.replace(self.bucket, bucket) for name in entry.resources))
            for entry in self.statements[role]
        ]


def deployed_roles() -> Roles:
    """Deploy both stacks into an empty AWS and read their roles. Whatever moto's S3 held in this process is gone."""
    with aws():
        deploy("dakter", BASE, AdminCidr="203.0.113.7/32")
        deploy("dakter-mlflow", MLFLOW, BaseStack="dakter", ImageTag="1")
        client, iam = boto3.client("cloudformation"), boto3.client("iam")
        made = {
            entry["LogicalResourceId"]: (entry["PhysicalResourceId"], entry["ResourceType"])
            for stack in STACKS
            for entry in client.describe_stack_resources(StackName=stack)["StackResources"]
            if "PhysicalResourceId" in entry  # moto names not all of them
        }
        roles = {
            name: iam.get_role(RoleName=identity)["Role"]
            for name, (identity, kind) in made.items()
            if kind == "AWS::IAM::Role"
        }
        names = {name: identity for name, (identity, _) in made.items()}
        names |= {
            "AWS::Partition": "aws",
            "AWS::Region": REGION,
            "AWS::AccountId": ACCOUNT,
            "ClusterName": template(BASE)["Parameters"]["ClusterName"]["Default"],
            "Bucket.Arn": f"arn:aws:s3:::{names['Bucket']}",
            "Log.Arn": f"arn:aws:logs:{REGION}:{ACCOUNT}:log-group:{names['Log']}",
            "DatabasePassword": "arn:aws:stand-in:::DatabasePassword",  # beyond moto
            **{f"{name}.Arn": role["Arn"] for name, role in roles.items()},
        }
        return Roles(
            statements={name: statements(role["RoleName"]) for name, role in roles.items()},
            assumed_by={name: _plain(role["AssumeRolePolicyDocument"])["Statement"] for name, role in roles.items()},
            bucket=names["Bucket"],
            names=names,
        )


def beyond_jobs(requests: Sequence[Request], roles: Roles, bucket: str) -> set[Request]:
    """Those requests of jobs that one of the roles that run jobs may not make.

    On one machine a job's driver and its workers cannot be told apart, so each is held against both.

    Args:
        bucket: ``s3://<name>``, in place of the stack's own.
    """
    name = bucket.removeprefix("s3://")
    return {one for role in JOB_ROLES for one in refused(requests, roles.on(role, name))}


def refused(requests: Iterable[Request], role: Sequence[Statement]) -> set[Request]:
    """The requests that a role may not make; Arrow's look for a bucket that cannot be is none of them."""

    def may(request: Request) -> bool:
        on = f"arn:aws:s3:::{request.bucket}" + (f"/{request.key}" if request.key else "")
        context = {} if request.prefix is None else {"s3_prefix": request.prefix}
        return allowed(role, request.action, on, **context)

    # $extremelyunlikelytoexist$: Arrow asks for it to learn how buckets are addressed; a 403 serves it as well
    return {request for request in requests if request.bucket != "$extremelyunlikelytoexist$" and not may(request)}


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
