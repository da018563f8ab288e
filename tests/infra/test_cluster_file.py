"""ray_cluster.yaml: filled from the stacks, through Ray's schema and bootstrap, and really launched on moto's EC2."""

from __future__ import annotations

import copy
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import boto3
import pytest
import yaml
from aws_stacks import ACCOUNT, BASE, REGION, ROOT, Statement, allowed, aws, deploy, resource, statements, template
from botocore.client import BaseClient  # type: ignore[import-untyped]

from infra import fill

CLUSTER = "dakter"
Calls = list[tuple[str, dict[str, Any]]]


@dataclass
class Account:
    """A deployed base stack, the filled cluster file, and every AWS call that was made since."""

    outputs: dict[str, str]
    text: str
    calls: Calls = field(default_factory=list)


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    from ray.autoscaler._private.aws.utils import client_cache, resource_cache

    folder = tmp_path_factory.mktemp("operator")
    key, filled = folder / "key.pem", folder / "cluster.yaml"
    key.write_text("no real key")
    calls: Calls = []
    call = BaseClient._make_api_call

    def record(client: Any, operation: str, parameters: dict[str, Any]) -> Any:
        calls.append((f"{client.meta.service_model.service_name}:{operation}", copy.deepcopy(parameters)))
        return call(client, operation, parameters)

    resource_cache.cache_clear()
    client_cache.cache_clear()
    with aws(), mock.patch.object(BaseClient, "_make_api_call", record):
        outputs = deploy("dakter", BASE, AdminCidr="203.0.113.7/32")
        for letter in "ABC":  # which moto leaves undone
            assert template(BASE)["Resources"][f"PublicSubnet{letter}"]["Properties"]["MapPublicIpOnLaunch"] is True
            subnet = outputs[f"Subnet{letter}"]
            boto3.client("ec2").modify_subnet_attribute(SubnetId=subnet, MapPublicIpOnLaunch={"Value": True})
        image = boto3.client("ec2").describe_images()["Images"][0]["ImageId"]
        given = ["--image", image, "--key-name", "operator", "--key-file", str(key), "--tracking-uri", "http://m:5000"]
        assert fill.main(["--stack", "dakter", *given, "-o", str(filled)]) == 0
        yield Account(outputs, filled.read_text(), calls)
    resource_cache.cache_clear()
    client_cache.cache_clear()


@pytest.fixture(scope="module")
def config(account: Account) -> dict[str, Any]:
    """The cluster file as ``ray up`` sends it to the head: defaults, schema, resources from EC2, bootstrap."""
    from ray.autoscaler._private.commands import _bootstrap_config

    booted: dict[str, Any] = _bootstrap_config(yaml.safe_load(account.text), no_config_cache=True)
    return booted


def adapter(config: dict[str, Any]) -> Any:
    """Autoscaler v2's own way to AWS, as on the head."""
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig, IConfigReader
    from ray.autoscaler.v2.instance_manager.node_provider import NodeProviderAdapter

    class Fixed(IConfigReader):
        def get_cached_autoscaling_config(self) -> Any:
            return AutoscalingConfig(config, skip_content_hash=True)

        def refresh_cached_autoscaling_config(self) -> None: ...

    provider: Any = AWSNodeProvider
    return NodeProviderAdapter(provider(config["provider"], CLUSTER), Fixed())


def wait(ready: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 60
    while not (found := ready()):
        assert time.monotonic() < deadline, "not within a minute"
        time.sleep(0.1)
    return found


@pytest.fixture(scope="module")
def launched(account: Account, config: dict[str, Any]) -> tuple[dict[str, Any], Calls]:
    """One instance of each worker type by its name, and the calls that launching, tagging and ending them took."""
    cloud = adapter(config)
    types = [name for name in config["available_node_types"] if name != config["head_node_type"]]
    start = len(account.calls)
    cloud.launch(dict.fromkeys(types, 1), "request-1")
    wait(lambda: cloud.poll_errors() or len(cloud.get_non_terminated()) == len(types))
    ids = {entry.node_type: name for name, entry in cloud.get_non_terminated().items()}
    assert set(ids) == set(types)
    cloud.v1_provider.set_node_tags(ids["gpu-1-spot"], {"ray-node-status": "up-to-date"})
    assert all(cloud.v1_provider.internal_ip(name) for name in ids.values())
    ec2 = boto3.client("ec2")
    found = ec2.describe_instances(InstanceIds=list(ids.values()))["Reservations"]
    instances = {entry["InstanceId"]: entry for reservation in found for entry in reservation["Instances"]}
    for instance in instances.values():
        disks = [disk["Ebs"]["VolumeId"] for disk in instance["BlockDeviceMappings"]]
        instance["Volumes"] = ec2.describe_volumes(VolumeIds=disks)["Volumes"]
    cloud.terminate(list(ids.values()), "request-2")
    wait(lambda: not cloud.get_non_terminated())
    calls = [entry for entry in account.calls[start:] if entry[0] != "ec2:DescribeVolumes"]  # our own look
    return {name: instances[ids[name]] for name in types}, calls


def test_every_placeholder_is_named_at_the_top_and_none_is_left(account: Account) -> None:
    text = fill.TEMPLATE.read_text()
    places = [number for number, line in enumerate(text.splitlines()) if re.search(r"FILL-IN-\w", line)]
    first, last = text.splitlines().index("metadata:"), text.splitlines().index("provider:")
    assert places
    assert all(first < number < last for number in places)
    assert "FILL-IN" not in account.text.replace("# ---- FILL IN", "")
    assert {fault.split(":")[0] for fault in fill.faults(text)} >= {"Image", "Region", "HeadProfileArn", "SubnetA"}


def test_a_stack_that_is_not_there_is_told(account: Account, capsys: pytest.CaptureFixture[str]) -> None:
    assert fill.main(["--stack", "other"]) == 1
    assert "stack other" in capsys.readouterr().err


def test_head_computes_nothing_and_workers_start_from_none(config: dict[str, Any]) -> None:
    types = config["available_node_types"]
    assert types["head"]["resources"]["CPU"] == 0
    assert types["head"]["resources"].get("GPU") == 0
    workers = {name: entry for name, entry in types.items() if name != "head"}
    assert {entry["min_workers"] for entry in workers.values()} == {0}
    gpus = {name: entry["resources"].get("GPU", 0) for name, entry in workers.items()}
    assert {gpus.pop(name) for name in ("cpu-spot", "cpu-on-demand")} == {0}
    assert all(int(name.split("-")[1]) == count for name, count in gpus.items()), "a name says how many GPUs"
    assert config["max_workers"] >= 8
    assert config["idle_timeout_minutes"] <= 10


def test_labels_are_such_as_ray_takes(config: dict[str, Any]) -> None:
    from ray._private.label_utils import validate_label_key, validate_label_value

    for entry in config["available_node_types"].values():
        assert set(entry["labels"]) == {"ray.io/market-type", "dakter/pool"}
        for key, value in entry["labels"].items():
            assert validate_label_key(key) is None
            validate_label_value(value)


def test_what_was_launched_is_spot_encrypted_and_imdsv2(
    account: Account, config: dict[str, Any], launched: tuple[dict[str, Any], Calls]
) -> None:
    instances, _ = launched
    for name, instance in instances.items():
        entry = config["available_node_types"][name]
        spot = entry["labels"]["ray.io/market-type"] == "spot"
        assert (instance.get("InstanceLifecycle") == "spot") == spot, name
        assert instance["InstanceType"] == entry["node_config"]["InstanceType"]
        assert instance["MetadataOptions"]["HttpTokens"] == "required", name
        assert instance["IamInstanceProfile"]["Arn"] == account.outputs["WorkerProfileArn"]
        assert [group["GroupId"] for group in instance["SecurityGroups"]] == [account.outputs["ClusterSecurityGroupId"]]
        tags = {tag["Key"]: tag["Value"] for tag in instance["Tags"]}
        assert (tags["ray-cluster-name"], tags["ray-user-node-type"]) == (CLUSTER, name)
        assert [(volume["Encrypted"], volume["Size"]) for volume in instance["Volumes"]] == [(True, 150)], name


def test_the_head_may_do_just_what_the_autoscaler_does(
    account: Account, launched: tuple[dict[str, Any], Calls]
) -> None:
    _, calls = launched
    given = statements(resource("dakter", "HeadRole"))
    asked = {"ec2:RunInstances", "ec2:CreateTags", "ec2:DescribeInstances", "ec2:TerminateInstances"}
    assert {name for name, _ in calls} == asked
    assert {a for s in given for a in s.actions if a.startswith("ec2:")} == asked
    for name, request in calls:
        if name == "ec2:RunInstances":
            for action, on, context in run_instances(request, account.outputs):
                assert allowed(given, action, on, **context), (action, on, context)
        elif name in ("ec2:CreateTags", "ec2:TerminateInstances"):
            for on in request.get("Resources") or request["InstanceIds"]:
                assert allowed(given, name, arn(f"instance/{on}"), ec2_ResourceTag_ray_cluster_name=CLUSTER)


def run_instances(request: dict[str, Any], outputs: dict[str, str]) -> list[tuple[str, str, dict[str, str]]]:
    """What IAM asks at one RunInstances: an action, a resource and its context for each thing that takes part."""
    tags = {tag["Key"]: tag["Value"] for spec in request["TagSpecifications"] for tag in spec["Tags"]}
    instance = {
        "aws_RequestTag_ray_cluster_name": tags["ray-cluster-name"],
        "ec2_MetadataHttpTokens": request["MetadataOptions"]["HttpTokens"],
    }
    disk = {"ec2_Encrypted": str(request["BlockDeviceMappings"][0]["Ebs"]["Encrypted"]).lower()}
    profile = request["IamInstanceProfile"]["Arn"].split("/")[-1]
    role = boto3.client("iam").get_instance_profile(InstanceProfileName=profile)["InstanceProfile"]["Roles"][0]["Arn"]
    asked: list[tuple[str, str, dict[str, str]]] = [
        ("ec2:RunInstances", arn("instance/*"), instance),
        ("ec2:RunInstances", arn("volume/*"), disk),
        ("ec2:RunInstances", arn(f"subnet/{request['SubnetId']}"), {}),
        *(("ec2:RunInstances", arn(f"security-group/{group}"), {}) for group in request["SecurityGroupIds"]),
        ("ec2:RunInstances", f"arn:aws:ec2:{REGION}::image/{request['ImageId']}", {}),
        ("ec2:RunInstances", arn(f"key-pair/{request['KeyName']}"), {}),
        ("ec2:RunInstances", arn("network-interface/*"), {}),
        ("ec2:CreateTags", arn("instance/*"), {"ec2_CreateAction": "RunInstances"}),
        ("iam:PassRole", role, {"iam_PassedToService": "ec2.amazonaws.com"}),
    ]
    if "InstanceMarketOptions" in request:
        asked.append(("ec2:RunInstances", arn("spot-instances-request/*"), {}))
    return asked


def arn(resource_id: str) -> str:
    return f"arn:aws:ec2:{REGION}:{ACCOUNT}:{resource_id}"


def test_the_head_may_do_nothing_else(account: Account) -> None:
    given = statements(resource("dakter", "HeadRole"))
    head = boto3.client("iam").get_role(RoleName=resource("dakter", "HeadRole"))["Role"]["Arn"]
    tagged = {"aws_RequestTag_ray_cluster_name": CLUSTER}

    def may(action: str, on: str, **context: str) -> bool:
        return allowed(given, action, on, **context)

    assert not may("ec2:RunInstances", arn("instance/*"), ec2_MetadataHttpTokens="optional", **tagged)
    assert not may("ec2:RunInstances", arn("instance/*"), ec2_MetadataHttpTokens="required")
    assert not may("ec2:RunInstances", arn("volume/*"), ec2_Encrypted="false")
    assert not may("ec2:RunInstances", arn("subnet/subnet-elsewhere"))
    assert not may("ec2:RunInstances", arn(f"security-group/{account.outputs['HeadSecurityGroupId']}"))
    assert not may("ec2:TerminateInstances", arn("instance/i-1"), ec2_ResourceTag_ray_cluster_name="other")
    assert not may("ec2:CreateTags", arn("instance/i-1"), ec2_ResourceTag_ray_cluster_name="other")
    assert not may("iam:PassRole", head, iam_PassedToService="ec2.amazonaws.com")
    assert not may("ec2:AuthorizeSecurityGroupIngress", arn(f"security-group/{account.outputs['HeadSecurityGroupId']}"))
    worker: list[Statement] = statements(resource("dakter", "WorkerRole"))
    assert not any(action.startswith(("ec2:", "iam:")) for entry in worker for action in entry.actions)


def typo(text: str) -> str:
    return text.replace("MetadataOptions:", "MetadataOption:")


def test_a_typo_in_a_node_config_is_named_before_anything_starts(account: Account) -> None:
    assert fill.faults(account.text) == []
    found = fill.faults(typo(account.text))
    assert any('"MetadataOption"' in fault for fault in found)
    assert any("HttpTokens is not required" in fault for fault in found)
    for wrong, word in (("Encrypted: true", "Encrypted: false"), ("SubnetIds:", "SubnetId:"), ("gp3", "[gp3]")):
        assert wrong in account.text
        assert fill.faults(account.text.replace(wrong, word)), word


def test_and_would_not_launch_though_rays_schema_takes_it(account: Account, config: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    broken = prepare_config(yaml.safe_load(typo(account.text)))
    validate_config(broken)
    for name, entry in broken["available_node_types"].items():
        entry["resources"] = config["available_node_types"][name]["resources"]
    cloud = adapter(broken)
    cloud.launch({"gpu-1-spot": 1}, "request-3")
    error = wait(cloud.poll_errors)[0]
    assert "MetadataOption" in str(error.__cause__ or error)
    assert not cloud.get_non_terminated()


def test_spot_comes_first_and_on_demand_where_spot_failed(config: dict[str, Any]) -> None:
    one = {"CPU": 4.0, "GPU": 1.0}
    assert started(config, one, 2) == {"gpu-1-spot": 2}
    assert started(config, one, 2, failed=["gpu-1-spot"]) == {"gpu-1-on-demand": 2}
    assert started(config, one, 4) == {"gpu-4-spot": 1}
    assert started(config, one, 4, failed=["gpu-4-spot"]) == {"gpu-4-on-demand": 1}
    assert started(config, {"CPU": 8.0}, 2) == {"cpu-spot": 1}
    assert started(config, {"CPU": 8.0}, 2, failed=["cpu-spot"]) == {"cpu-on-demand": 1}


def test_every_open_spot_type_has_its_twin_on_demand(config: dict[str, Any]) -> None:
    types = {name: entry for name, entry in config["available_node_types"].items() if entry["max_workers"]}
    for name, entry in types.items():
        if name.endswith("-spot"):
            twin = types[f"{name.removesuffix('-spot')}-on-demand"]
            assert twin["node_config"]["InstanceType"] == entry["node_config"]["InstanceType"]
            assert twin["priority"] < entry["priority"]
            assert entry["labels"]["ray.io/market-type"] == "spot"


def test_the_dear_nodes_start_for_nobody_until_they_are_opened(config: dict[str, Any]) -> None:
    one, eight = {"CPU": 4.0, "GPU": 1.0}, {"CPU": 8.0, "GPU": 8.0}
    for count in (4, 7, 8, 16):
        assert set(started(config, one, count)) == {"gpu-4-spot"}, count
    assert started(config, eight, 1) == {}
    opened = copy.deepcopy(config)
    opened["available_node_types"]["gpu-8-spot"]["max_workers"] = 8
    assert started(opened, eight, 8) == {"gpu-8-spot": 8}


def started(config: dict[str, Any], needs: dict[str, float], count: int, failed: Sequence[str] = ()) -> dict[str, int]:
    """Which nodes autoscaler v2 starts in an empty cluster for ``count`` times ``needs``.

    Args:
        failed: types whose last launch failed.
    """
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.utils import ResourceRequestUtil

    settings = AutoscalingConfig(config, skip_content_hash=True)
    asked = ResourceRequestUtil.group_by_count([ResourceRequestUtil.make(needs)] * count)
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=settings.get_node_type_configs(),
        max_num_nodes=settings.get_max_num_nodes(),
        resource_requests=asked,
        recoverable_resource_availabilities=dict.fromkeys(failed, 0.0),
    )
    reply = ResourceDemandScheduler(mock.Mock()).schedule(request)
    return {launch.instance_type: launch.count for launch in reply.to_launch}


def test_nothing_but_ssh_faces_outwards_and_the_token_is_on(config: dict[str, Any]) -> None:
    head = " ".join(config["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in head
    assert "0.0.0.0" not in head
    everything = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    starts = [command for command in everything if re.search(r"\bray start\b", command)]
    assert len(starts) == 2
    assert all(command.startswith(". ~/.dakter_environment &&") for command in starts)
    written = config["setup_commands"][0]
    with mock.patch.dict("os.environ", {"HOME": "/nowhere"}):
        shown = subprocess.run(["sh", "-c", written.split(" >")[0]], capture_output=True, text=True, check=True).stdout
    assert "export RAY_AUTH_MODE=token\n" in shown
    assert f"export AWS_REGION={REGION}\n" in shown
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


def test_nodes_get_the_whole_project_at_pinned_versions(config: dict[str, Any], tmp_path: Path) -> None:
    from packaging.requirements import Requirement

    mounts = {there: here for there, here in config["file_mounts"].items() if there.startswith("~/dakter/")}
    assert all((ROOT / here).exists() for here in mounts.values())
    settings = pyproject()
    needed = {settings["tool"]["setuptools"]["packages"][0], "jobs", "pyproject.toml", settings["project"]["readme"]}
    assert needed | {"infra", "LICENSE"} <= {there.removeprefix("~/dakter/") for there in mounts}
    pins = dict(line.split("==") for line in constraints())
    for text in [*settings["project"]["dependencies"], *settings["project"]["optional-dependencies"]["aws"]]:
        needs = Requirement(text)
        assert needs.specifier.contains(pins[needs.name.lower()]), f"{text}: constraints.txt has {pins[needs.name]}"
    for command in config["setup_commands"]:
        checked = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stderr
    assert any("-c infra/constraints.txt" in command for command in config["setup_commands"])


def test_one_ray_version_everywhere() -> None:
    pins = dict(line.split("==") for line in constraints())
    for path in (ROOT / "infra" / "kuberay").glob("ray*.yaml"):
        assert re.findall(r"rayVersion: (\S+)", path.read_text()) == [pins["ray"]], path


def pyproject() -> dict[str, Any]:
    import tomllib

    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def constraints() -> list[str]:
    lines = (ROOT / "infra" / "constraints.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]
