"""The CloudFormation templates: linted, deployed on moto, and what was made looked at.

From a template moto makes a bucket with its encryption alone, subnets without their public addresses and route tables
without their subnets, and it leaves out what ``aws_stacks.BEYOND_MOTO`` names: those parts are read from the template.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from aws_stacks import ACCOUNT, BASE, BEYOND_MOTO, MLFLOW, REGION, STACKS, aws, deploy, resource, template

Outputs = dict[str, str]


@pytest.fixture(scope="module")
def base() -> Iterator[Outputs]:
    with aws():
        yield deploy("dakter", BASE, AdminCidr="203.0.113.7/32")


@pytest.fixture(scope="module")
def mlflow(base: Outputs) -> Outputs:
    return deploy("dakter-mlflow", MLFLOW, BaseStack="dakter", ImageTag="1")


def test_templates_pass_the_linter_and_it_sees_a_misspelt_property(tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text(BASE.read_text().replace("VersioningConfiguration", "VersionConfiguration"))
    command = [str(Path(sys.executable).parent / "cfn-lint"), "--format", "parseable", str(BASE), str(MLFLOW)]
    done = subprocess.run([*command, str(broken)], capture_output=True, text=True, check=False)
    found = [line.split(":") for line in done.stdout.splitlines()]
    assert {line[0] for line in found} == {str(broken)}, done.stdout + done.stderr
    assert any("VersionConfiguration" in line[-1] for line in found)


def test_only_what_moto_cannot_make_was_left_out(base: Outputs, mlflow: Outputs) -> None:
    client = boto3.client("cloudformation")
    for stack, path in STACKS.items():
        made = client.describe_stack_resources(StackName=stack)["StackResources"]
        wanted = {name for name, entry in template(path)["Resources"].items() if entry["Type"] not in BEYOND_MOTO}
        assert {entry["LogicalResourceId"] for entry in made} == wanted


def test_the_bucket_is_encrypted_versioned_private_and_tls_only(base: Outputs) -> None:
    rules = boto3.client("s3").get_bucket_encryption(Bucket=base["BucketName"])["ServerSideEncryptionConfiguration"]
    assert [rule["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] for rule in rules["Rules"]] == ["AES256"]
    bucket = template(BASE)["Resources"]["Bucket"]
    assert bucket["DeletionPolicy"] == bucket["UpdateReplacePolicy"] == "Retain"
    properties = bucket["Properties"]
    assert properties["VersioningConfiguration"] == {"Status": "Enabled"}
    blocks = ("BlockPublicAcls", "BlockPublicPolicy", "IgnorePublicAcls", "RestrictPublicBuckets")
    assert properties["PublicAccessBlockConfiguration"] == dict.fromkeys(blocks, True)
    policy = template(BASE)["Resources"]["BucketPolicy"]["Properties"]["PolicyDocument"]["Statement"]
    assert {json.dumps(entry["Condition"], sort_keys=True) for entry in policy} == {
        '{"Bool": {"aws:SecureTransport": "false"}}',
        '{"NumericLessThan": {"s3:TlsVersion": "1.2"}}',
    }
    for entry in policy:
        assert (entry["Effect"], entry["Principal"], entry["Action"]) == ("Deny", "*", "s3:*")
        assert entry["Resource"] == [{"Fn::GetAtt": ["Bucket", "Arn"]}, {"Fn::Sub": "${Bucket.Arn}/*"}]


def test_the_bucket_forgets_what_is_temporary_and_nothing_else() -> None:
    rules = template(BASE)["Resources"]["Bucket"]["Properties"]["LifecycleConfiguration"]["Rules"]
    by_id = {rule["Id"]: rule for rule in rules}
    assert by_id["temporary"]["Prefix"] == "tmp/"
    expiring = [rule["Id"] for rule in rules if "ExpirationInDays" in rule]
    assert expiring == ["temporary"], "no rule removes current objects of runs/, data/ or mlflow/"
    assert by_id["noncurrent"]["NoncurrentVersionExpiration"] == {"NoncurrentDays": {"Ref": "NoncurrentDays"}}
    assert by_id["unfinished-uploads"]["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 3}


def test_ssh_of_the_operators_is_all_that_is_open(base: Outputs, mlflow: Outputs) -> None:
    groups = boto3.client("ec2").describe_security_groups(Filters=[{"Name": "vpc-id", "Values": [base["VpcId"]]}])[
        "SecurityGroups"
    ]
    made = {group["GroupId"]: group for group in groups if group["GroupName"] != "default"}
    assert len(made) == 4
    from_outside = [
        (group["GroupId"], rule["FromPort"], rule["ToPort"], [entry["CidrIp"] for entry in rule["IpRanges"]])
        for group in made.values()
        for rule in group["IpPermissions"]
        if rule["IpRanges"] or rule.get("Ipv6Ranges")
    ]
    assert from_outside == [(base["HeadSecurityGroupId"], 22, 22, ["203.0.113.7/32"])]
    cluster = base["ClusterSecurityGroupId"]
    server, database = (resource("dakter-mlflow", f"{name}SecurityGroup") for name in ("Server", "Database"))
    sources = {
        group: [
            (rule.get("FromPort"), pair["GroupId"])
            for rule in entry["IpPermissions"]
            for pair in rule["UserIdGroupPairs"]
        ]
        for group, entry in made.items()
    }
    assert [source for _, source in sources[cluster]] == [cluster]
    assert sources[server] == [(5000, cluster)]
    assert sources[database] == [(5432, server)]


@pytest.mark.parametrize("cidr", ["0.0.0.0/0", "203.0.113.0/8", "203.0.113.7"])
def test_ssh_cannot_be_opened_to_the_world(cidr: str) -> None:
    pattern = template(BASE)["Parameters"]["AdminCidr"]["AllowedPattern"]
    assert re.fullmatch(pattern, "203.0.113.7/32")
    assert not re.fullmatch(pattern, cidr)


def test_the_database_is_encrypted_and_out_of_reach(base: Outputs, mlflow: Outputs) -> None:
    client = boto3.client("rds")
    database = client.describe_db_instances()["DBInstances"][0]
    assert database["StorageEncrypted"] is True
    assert database["PubliclyAccessible"] is False
    assert database["BackupRetentionPeriod"] == 7
    subnets = client.describe_db_subnet_groups()["DBSubnetGroups"][0]["Subnets"]
    private = {base["PrivateSubnetA"], base["PrivateSubnetB"]}
    assert {entry["SubnetIdentifier"] for entry in subnets} == private
    for letter in "AB":  # moto keeps no association that a template makes
        association = template(BASE)["Resources"][f"RoutesOfPrivateSubnet{letter}"]["Properties"]
        assert association == {"SubnetId": {"Ref": f"PrivateSubnet{letter}"}, "RouteTableId": {"Ref": "PrivateRoutes"}}
    table = boto3.client("ec2").describe_route_tables(RouteTableIds=[resource("dakter", "PrivateRoutes")])
    assert [route["GatewayId"] for route in table["RouteTables"][0]["Routes"]] == ["local"]
    entry = template(MLFLOW)["Resources"]["Database"]
    assert entry["DeletionPolicy"] == "Snapshot"
    assert "resolve:secretsmanager" in json.dumps(entry["Properties"]["MasterUserPassword"])


def test_buckets_are_reached_without_the_internet(base: Outputs) -> None:
    endpoint = boto3.client("ec2").describe_vpc_endpoints()["VpcEndpoints"][0]
    assert (endpoint["ServiceName"], endpoint["VpcEndpointType"]) == (f"com.amazonaws.{REGION}.s3", "Gateway")


def test_one_server_at_a_time_and_no_secret_in_its_task(mlflow: Outputs) -> None:
    ecs = boto3.client("ecs")
    task = ecs.describe_task_definition(taskDefinition=resource("dakter-mlflow", "Task"))["taskDefinition"]
    server = task["containerDefinitions"][0]
    assert server["image"].endswith(f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/dakter/mlflow:1")
    environment = {entry["name"]: entry["value"] for entry in server["environment"]}
    assert environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    assert [entry["name"] for entry in server["secrets"]] == ["DATABASE_PASSWORD"]
    assert "DATABASE_PASSWORD" not in environment
    service = template(MLFLOW)["Resources"]["Service"]["Properties"]
    assert service["DesiredCount"] == 1
    assert service["DeploymentConfiguration"]["MaximumPercent"] == 100


def test_every_permission_says_why() -> None:
    for path in (BASE, MLFLOW):
        lines = path.read_text().splitlines()
        sids = [line for line in lines if "- Sid:" in line and "Deny" not in line]
        assert sids
        assert [line for line in sids if "#" not in line] == []
