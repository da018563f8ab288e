"""The Kubernetes manifests: plain resources and every pod by Kubernetes' own schemas, and what holds of each pod.

KubeRay's resource definitions cannot be had here, so RayCluster and RayJob are held against a schema of the fields that
are used, written down from the API reference of KubeRay 1.7: it catches a misspelt or misplaced field, and knows no
others. ``kubectl apply --dry-run=server`` on a cluster with KubeRay is the full check.
"""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "infra" / "kuberay"
KUBERNETES = "1.33"


def closed(required: str, **properties: Any) -> dict[str, Any]:
    """An object with these fields and no others."""
    return {"type": "object", "additionalProperties": False, "required": required.split(), "properties": properties}


TEXT, COUNT, SECONDS = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "integer", "minimum": 1}
TEXTS = {"type": "object", "additionalProperties": TEXT}
POD = closed("spec", metadata={"type": "object"}, spec={"type": "object"})  # checked by kubernetes_validate
HEAD = closed(
    "rayStartParams template",
    serviceType={"enum": ["ClusterIP"]},
    rayStartParams=TEXTS,
    labels=TEXTS,
    template=POD,
)
WORKERS = closed(
    "groupName minReplicas maxReplicas rayStartParams template",
    groupName=TEXT,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    priority={"type": "integer"},
    rayStartParams=TEXTS,
    labels=TEXTS,
    template=POD,
)
AUTOSCALER = closed(
    "version",
    version={"enum": ["v1", "v2"]},
    idleTimeoutSeconds=COUNT,
    upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
    resources={"type": "object"},
    securityContext={"type": "object"},
)
CLUSTER = closed(
    "headGroupSpec rayVersion",
    rayVersion=TEXT,
    authOptions=closed("mode", mode={"enum": ["disabled", "token"]}),
    enableInTreeAutoscaling={"type": "boolean"},
    autoscalerOptions=AUTOSCALER,
    headGroupSpec=HEAD,
    workerGroupSpecs={"type": "array", "items": WORKERS},
)
JOB = closed(
    "entrypoint rayClusterSpec",
    entrypoint=TEXT,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"]},
    shutdownAfterJobFinishes={"type": "boolean"},
    ttlSecondsAfterFinished=COUNT,
    activeDeadlineSeconds=SECONDS,
    preRunningDeadlineSeconds=SECONDS,
    backoffLimit=COUNT,
    submitterConfig=closed("backoffLimit", backoffLimit=COUNT),
    submitterPodTemplate=POD,
    rayClusterSpec=CLUSTER,
)
SPECS = {"RayCluster": CLUSTER, "RayJob": JOB}


def documents() -> dict[str, dict[str, Any]]:
    """Every manifest by its kind."""
    found = [entry for path in sorted(FOLDER.glob("*.yaml")) for entry in yaml.safe_load_all(path.read_text())]
    return {entry["kind"]: entry for entry in found}


def check(document: dict[str, Any]) -> None:
    """Raise jsonschema's ValidationError at a field that is wrong."""
    if document["kind"] not in SPECS:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
        return
    metadata = closed("name namespace", name=TEXT, namespace=TEXT)
    whole = closed(
        "apiVersion kind metadata spec",
        apiVersion={"const": "ray.io/v1"},
        kind=TEXT,
        metadata=metadata,
        spec=SPECS[document["kind"]],
    )
    jsonschema.validate(document, whole)
    for name, spec in pods(document).items():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def cluster(document: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = document["spec"]
    return spec.get("rayClusterSpec", spec)


def pods(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Pod specs of a RayCluster or RayJob by group; ``head`` and ``submitter`` among them."""
    spec = cluster(document)
    found = {"head": spec["headGroupSpec"]["template"]["spec"]}
    found |= {group["groupName"]: group["template"]["spec"] for group in spec["workerGroupSpecs"]}
    if "submitterPodTemplate" in document["spec"]:
        found["submitter"] = document["spec"]["submitterPodTemplate"]["spec"]
    return found


KINDS = ("Namespace", "ServiceAccount", "NetworkPolicy", "RayCluster", "RayJob")


@pytest.mark.parametrize("kind", KINDS)
def test_manifests_are_valid(kind: str) -> None:
    assert set(documents()) == set(KINDS)
    check(documents()[kind])


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("RayJob", "spec.shutdownAfterJobFinished", True),
        ("RayJob", "spec.activeDeadlineSeconds", 0),
        ("RayJob", "spec.rayClusterSpec.autoscalerOptions.version", "v3"),
        ("RayCluster", "spec.authOptions.mode", "on"),
        ("RayCluster", "spec.headGroupSpec.template.spec.nodeSelectors", {}),
        ("RayCluster", "spec.headGroupSpec.rayStartParams.num-cpus", 0),
        ("NetworkPolicy", "spec.policyType", ["Ingress"]),
    ],
)
def test_a_mistake_is_seen(kind: str, path: str, value: Any) -> None:
    broken = copy.deepcopy(documents()[kind])
    *parents, last = path.split(".")
    place = broken
    for name in parents:
        place = place[name]
    place[last] = value
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        check(broken)


@pytest.mark.parametrize("kind", ["RayCluster", "RayJob"])
def test_clusters_want_a_token_grow_from_nothing_and_spare_the_head(kind: str) -> None:
    spec = cluster(documents()[kind])
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["autoscalerOptions"]["version"] == "v2"
    head = spec["headGroupSpec"]
    assert {name: head["rayStartParams"][name] for name in ("num-cpus", "num-gpus")} == {
        "num-cpus": "0",
        "num-gpus": "0",
    }
    assert {group["minReplicas"] for group in spec["workerGroupSpecs"]} == {0}
    for group in spec["workerGroupSpecs"]:
        gpus = int(group["template"]["spec"]["containers"][0]["resources"]["limits"].get("nvidia.com/gpu", 0))
        assert group["maxReplicas"] == 0 or gpus <= 1, "the dear nodes start for nobody until they are opened"
    for group in [head, *spec["workerGroupSpecs"]]:
        market = group["labels"]["ray.io/market-type"]
        assert group["template"]["spec"]["nodeSelector"] == {"karpenter.sh/capacity-type": market}


@pytest.mark.parametrize("kind", ["RayCluster", "RayJob"])
def test_pods_are_such_as_the_restricted_standard_lets_in(kind: str) -> None:
    for name, spec in pods(documents()[kind]).items():
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
            resources = container["resources"]
            assert resources["requests"]["memory"] == resources["limits"]["memory"], "no pod dies for another's memory"
            gpus = [resources[part].get("nvidia.com/gpu") for part in ("requests", "limits")]
            assert gpus[0] == gpus[1]
            assert (gpus[0] is not None) == any(
                toleration["key"] == "nvidia.com/gpu" for toleration in spec.get("tolerations", [])
            )
        named = [entry["name"] for container in spec["containers"] for entry in container.get("env", [])]
        assert not [entry for entry in named if "SECRET" in entry or "TOKEN" in entry or "ACCESS_KEY" in entry]


def environment(spec: dict[str, Any]) -> dict[str, str]:
    """The variables of a pod's first container."""
    return {entry["name"]: entry["value"] for entry in spec["containers"][0].get("env", [])}


@pytest.mark.parametrize("kind", ["RayCluster", "RayJob"])
def test_a_job_that_is_stopped_has_the_time_for_a_checkpoint_that_it_has_on_ec2(kind: str) -> None:
    found = re.search(r"^ *RAY_JOB_STOP_WAIT_TIME_S=(\d+)$", (ROOT / "ray_cluster.yaml").read_text(), re.M)
    assert found
    given = {
        name: int(environment(spec).get("RAY_JOB_STOP_WAIT_TIME_S", "3"))  # what Ray does of itself
        for name, spec in pods(documents()[kind]).items()
        if name != "submitter"
    }
    assert given == dict.fromkeys(given, int(found[1])), "on workers too: a job that asks for CPUs has its driver there"
    assert int(found[1]) >= 60


def test_workers_have_time_to_drain() -> None:
    for kind in ("RayCluster", "RayJob"):
        for group in cluster(documents()[kind])["workerGroupSpecs"]:
            spec = group["template"]["spec"]
            drain_s = float(environment(spec)["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
            assert drain_s < spec["terminationGracePeriodSeconds"] < 120, "EC2 gives two minutes"


def test_a_job_ends_and_takes_its_cluster_along() -> None:
    spec = documents()["RayJob"]["spec"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert 0 < spec["preRunningDeadlineSeconds"] < spec["activeDeadlineSeconds"] <= 7 * 86400
    from jobs import _cli, generate

    words = spec["entrypoint"].split()
    assert words[:2] == ["python", "jobs/generate.py"]
    assert (ROOT / words[1]).is_file()
    _cli.resolve(generate.GenerateSettings, preset=words[words.index("--preset") + 1])


def test_the_images_run_as_nobody_special_at_pinned_versions() -> None:
    lines = (ROOT / "infra" / "Dockerfile").read_text().splitlines()
    stages = [line.split(" AS ")[1] for line in lines if line.startswith("FROM")]
    assert stages == ["base", "mlflow", "job"]
    assert lines.count("USER 1000") == 2
    assert lines[next(i for i, line in enumerate(lines) if line.startswith("FROM"))].split()[1].count(".") == 2
    for line in lines:
        if line.startswith("RUN pip install"):
            assert "/tmp/constraints.txt" in line or "--no-deps" in line, line
        if line.startswith("COPY"):
            assert all((ROOT / source).exists() for source in line.split()[1:-1]), line
