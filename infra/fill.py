"""Fills the placeholders of ray_cluster.yaml from the stacks of infra/, and checks a cluster file before it costs.

    python infra/fill.py --stack dakter --mlflow-stack dakter-mlflow \\
        --image ami-0abc --key-name dakter --key-file ~/.ssh/dakter.pem
    python infra/fill.py --check my_cluster.yaml      # a file that was filled by hand

Ray's own schema knows nothing of what stands inside ``node_config`` (a misspelt ``MetadataOption`` would start nodes
that hand out their role to any process that can fetch a URL), so that part is checked against EC2's API model, offline.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

TEMPLATE = Path(__file__).parents[1] / "ray_cluster.yaml"
_PLACEHOLDER = re.compile(r"FILL-IN-(\w+)")


def fill(text: str, values: Mapping[str, str]) -> str:
    """``text`` with every ``FILL-IN-Name`` replaced by ``values["Name"]``; raises ValueError naming those it lacks."""
    missing = sorted({name for name in _PLACEHOLDER.findall(_without_comments(text)) if name not in values})
    if missing:
        raise ValueError(
            f"no value for {', '.join(missing)}: give the option of that name, or deploy the stack that has it"
        )
    return _PLACEHOLDER.sub(lambda match: values.get(match[1], match[0]), text)


def faults(text: str) -> list[str]:
    """What is wrong with a cluster file, one line each; none for a file that may go to ``ray up``."""
    found = [f"{name}: still to be filled in" for name in sorted(set(_PLACEHOLDER.findall(_without_comments(text))))]
    try:
        config = yaml.safe_load(text)
        types = {name: dict(entry["node_config"]) for name, entry in config["available_node_types"].items()}
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        return [*found, f"not readable as a cluster file: {error!r}"]
    for name, node_config in types.items():
        found += [f"{name}: {fault}" for fault in _node_faults(node_config)]
    key = Path(str(config.get("auth", {}).get("ssh_private_key", ""))).expanduser()
    if not found and not key.is_file():
        found.append(f"auth.ssh_private_key: no file at {key}")
    return found


@cache
def _run_instances() -> Any:
    """EC2's model of a RunInstances request, which botocore brings along; half a second to load."""
    import botocore.session  # type: ignore[import-untyped]

    return botocore.session.Session().get_service_model("ec2").operation_model("RunInstances").input_shape


def _node_faults(node_config: dict[str, Any]) -> list[str]:
    from botocore.validate import ParamValidator  # type: ignore[import-untyped]

    subnets = node_config.pop("SubnetIds", None)  # Ray's own key: it tries them in turn as SubnetId
    request = {"MinCount": 1, "MaxCount": 1, **node_config}
    report = ParamValidator().validate(request, _run_instances())
    found = report.generate_report().splitlines() if report.has_errors() else []
    if not subnets:
        found.append("SubnetIds: missing; Ray would take any public subnet of the region")
    disks = [disk.get("Ebs", {}) for disk in node_config.get("BlockDeviceMappings", [])]
    if not disks or not all(disk.get("Encrypted") is True for disk in disks):
        found.append("BlockDeviceMappings: a disk without Encrypted: true; infra/base.yaml's head may not launch it")
    if node_config.get("MetadataOptions", {}).get("HttpTokens") != "required":
        found.append("MetadataOptions: HttpTokens is not required (IMDSv2); infra/base.yaml's head may not launch it")
    return found


def _without_comments(text: str) -> str:
    return "\n".join(line.split(" # ")[0] for line in text.splitlines() if not line.lstrip().startswith("#"))


def outputs(stack: str, region: str | None) -> dict[str, str]:
    """Outputs of a CloudFormation stack; raises ValueError if there is no such stack."""
    import boto3
    from botocore.exceptions import ClientError  # type: ignore[import-untyped]

    try:
        found = boto3.client("cloudformation", region_name=region).describe_stacks(StackName=stack)["Stacks"][0]
    except ClientError as error:
        raise ValueError(f"stack {stack}: {error}; deploy it as infra/README.md says, or give --region") from error
    return {entry["OutputKey"]: entry["OutputValue"] for entry in found.get("Outputs", [])}


def main(arguments: list[str] | None = None) -> int:
    """Command line: exit status 0 written or in order, 1 faults, 2 wrong use."""
    parser = argparse.ArgumentParser(
        description="Fill in ray_cluster.yaml from stacks, or check one that was filled in."
    )
    parser.add_argument("--check", metavar="FILE", type=Path, help="only check this cluster file")
    parser.add_argument("--stack", help="stack of infra/base.yaml")
    parser.add_argument("--mlflow-stack", help="stack of infra/mlflow.yaml")
    parser.add_argument("--tracking-uri", help="another MLflow server, in place of --mlflow-stack")
    parser.add_argument("--image", help="AMI of all nodes; infra/README.md has the command that finds it")
    parser.add_argument("--key-name", help="EC2 key pair")
    parser.add_argument("--key-file", help="its private half on this machine")
    parser.add_argument("--region", help="default: that of your AWS settings")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("ray_cluster.filled.yaml"), help="default: %(default)s"
    )
    options = parser.parse_args(arguments)
    if options.check:
        return _report(faults(options.check.read_text()), f"{options.check}: in order")
    if not options.stack:
        parser.error("give --stack (to fill in) or --check FILE")
    given = {
        "Image": options.image,
        "KeyName": options.key_name,
        "KeyFile": options.key_file,
        "TrackingUri": options.tracking_uri,
    }
    try:
        values = outputs(options.stack, options.region)
        if options.mlflow_stack:
            values |= outputs(options.mlflow_stack, options.region)
        text = fill(TEMPLATE.read_text(), values | {name: value for name, value in given.items() if value})
    except ValueError as error:
        return _report([str(error)], "")
    found = faults(text)
    if not found:
        options.output.write_text(text)
    return _report(found, f"{options.output}: written and in order; next: ray up {options.output}")


def _report(found: list[str], success: str) -> int:
    for line in found or [success]:
        print(line, file=sys.stderr if found else sys.stdout)
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
