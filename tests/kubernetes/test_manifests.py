"""The manifests are valid and secure, and agree with the server."""

import functools
import json
import re
import subprocess

import kubernetes_validate
import pytest
import yaml
from cloudcoil.models.keda.v1alpha1 import ScaledObject
from cloudcoil.models.prometheus_operator.v1 import PrometheusRule, ServiceMonitor
from pydantic import BaseModel, ValidationError

from app import __version__
from app.settings import Settings
from tests.kubernetes.manifests import (
    COMPONENTS,
    GUIDE,
    OVERLAYS,
    ROOT,
    Manifest,
    compose,
    find,
    find_pod,
    find_server,
    list_kustomizations,
    needs_kubectl,
    read_guide,
    read_settings_map,
    render,
)

pytestmark = needs_kubectl

OLDEST, NEWEST = "1.30", "1.37"
OLDEST_WITH_IMAGE_VOLUMES = "1.31"
OPERATOR_MODELS: dict[str, type[BaseModel]] = {"ServiceMonitor": ServiceMonitor, "ScaledObject": ScaledObject}
KUSTOMIZATIONS = list_kustomizations()


def check_schema(manifest: Manifest, version: str) -> None:
    """Raises the `ValidationError` of either library if an API server would reject the manifest or drop a field."""
    if model := OPERATOR_MODELS.get(manifest["kind"]):
        model.model_validate(manifest, extra="forbid")
    else:
        kubernetes_validate.validate(manifest, version, strict=True)


@functools.cache
def check_schema_cached(manifest: str, version: str) -> None:
    """As `check_schema`, cached: schemas are slow to load, and most manifests are the same in all kustomizations."""
    check_schema(json.loads(manifest), version)


@pytest.mark.parametrize("kustomization", KUSTOMIZATIONS)
def test_manifests_conform_to_the_schemas(kustomization: str) -> None:
    oldest = OLDEST_WITH_IMAGE_VOLUMES if "model-image" in kustomization else OLDEST
    for manifest in render(kustomization):
        for version in (oldest, NEWEST):
            check_schema_cached(json.dumps(manifest), version)


def test_schema_check_rejects_wrong_types_and_unknown_fields() -> None:
    manifests = render(compose("cpu", "monitoring", "autoscaling"))
    for kind, part in (("Deployment", "strategy"), ("ServiceMonitor", "endpoints"), ("ScaledObject", "triggers")):
        [manifest] = find(manifests, kind)
        for wrong in ({part: 1}, {"misspelt": 1}):
            with pytest.raises((ValidationError, kubernetes_validate.ValidationError)):
                check_schema(manifest | {"spec": manifest["spec"] | wrong}, NEWEST)


def test_every_overlay_and_component_is_tested() -> None:
    folder = ROOT / "docker" / "kubernetes"
    assert sorted(path.name for path in (folder / "overlays").iterdir()) == sorted(OVERLAYS)
    assert sorted(path.name for path in (folder / "components").iterdir()) == sorted(COMPONENTS)
    assert len(read_guide()) == 2


@pytest.mark.parametrize("kustomization", KUSTOMIZATIONS)
def test_environment_variables_are_settings(kustomization: str) -> None:
    names = {f"CENTERNET_{name.upper()}" for name in Settings.model_fields}
    assert read_settings_map(render(kustomization)).keys() <= names
    assert not any(
        variable["name"].startswith("CENTERNET_")
        for container in find_pod(render(kustomization))["spec"]["containers"]
        for variable in container.get("env", [])
    )


@pytest.mark.parametrize("kustomization", KUSTOMIZATIONS)
def test_pods_meet_the_restricted_pod_security_standard(kustomization: str) -> None:
    [namespace] = find(render(kustomization), "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    pod = find_pod(render(kustomization))["spec"]
    assert not pod.keys() & {"hostNetwork", "hostPID", "hostIPC", "serviceAccountName"}
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in [*pod["containers"], *pod.get("initContainers", [])]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["limits"].keys() >= {"cpu", "memory"}
        assert not any("hostPort" in port for port in container.get("ports", []))
    allowed = {"emptyDir", "configMap", "secret", "persistentVolumeClaim", "image"}
    assert {kind for volume in pod["volumes"] for kind in volume if kind != "name"} <= allowed


@pytest.mark.parametrize("kustomization", KUSTOMIZATIONS)
def test_selectors_and_ports_match_the_pods(kustomization: str) -> None:
    manifests = render(kustomization)
    labels = find_pod(manifests)["metadata"]["labels"]
    selectors = [
        *(manifest["spec"]["selector"]["matchLabels"] for manifest in find(manifests, "Deployment")),
        *(manifest["spec"]["selector"]["matchLabels"] for manifest in find(manifests, "PodDisruptionBudget")),
        *(manifest["spec"]["podSelector"]["matchLabels"] for manifest in find(manifests, "NetworkPolicy")),
        *(manifest["spec"]["selector"] for manifest in find(manifests, "Service")),
    ]
    assert len(selectors) >= 4
    for selector in selectors:
        assert selector
        assert selector.items() <= labels.items()
    [service] = find(manifests, "Service")
    ports = {port["name"]: port["containerPort"] for port in find_server(manifests)["ports"]}
    assert ports["metrics"] == int(read_settings_map(manifests)["CENTERNET_METRICS_PORT"])
    image = (ROOT / "docker" / "serve.Dockerfile").read_text()
    assert re.findall(r"CENTERNET_PORT=(\d+)", image) == re.findall(r"EXPOSE (\d+)", image) == [str(ports["http"])]
    assert {port["targetPort"] for port in service["spec"]["ports"]} == ports.keys()
    for policy in find(manifests, "NetworkPolicy"):
        for rule in policy["spec"].get("ingress", []):
            assert {port["port"] for port in rule["ports"]} <= ports.keys()
    for monitor in find(manifests, "ServiceMonitor"):
        assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
        assert {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} <= {
            port["name"] for port in service["spec"]["ports"]
        }
        [endpoint] = monitor["spec"]["endpoints"]
        [scrape] = yaml.safe_load((ROOT / "docker/prometheus/prometheus.yml").read_text())["scrape_configs"]
        assert endpoint["relabelings"] == [{"targetLabel": "job", "replacement": scrape["job_name"]}]
    assert {manifest["metadata"].get("namespace") for manifest in manifests if manifest["kind"] != "Namespace"} == {
        "centernet"
    }


@pytest.mark.parametrize("kustomization", KUSTOMIZATIONS)
def test_termination_grace_period_covers_the_stop_timeout(kustomization: str) -> None:
    pod = find_pod(render(kustomization))["spec"]
    settings = read_settings_map(render(kustomization))
    pause = find_server(render(kustomization))["lifecycle"]["preStop"]["sleep"]["seconds"]
    stop = float(settings["CENTERNET_STOP_TIMEOUT_SECONDS"])
    assert stop >= Settings.model_fields["timeout_seconds"].default
    assert pod["terminationGracePeriodSeconds"] >= pause + stop + 5


@pytest.mark.parametrize("kustomization", KUSTOMIZATIONS)
def test_pods_run_this_versions_image_as_its_user(kustomization: str) -> None:
    pod = find_pod(render(kustomization))["spec"]
    [gpus] = {container["resources"]["limits"].get("nvidia.com/gpu") for container in pod["containers"]}
    suffix = "-cuda" if gpus else ""
    for container in [*pod["containers"], *pod.get("initContainers", [])]:
        assert container["image"].rpartition("/")[2] == f"centernet-service:{__version__}{suffix}"
    image = (ROOT / "docker" / "serve.Dockerfile").read_text()
    user, group = re.findall(r"^USER (\d+):(\d+)", image, re.MULTILINE)[0]
    security = pod["securityContext"]
    assert (security["runAsUser"], security["runAsGroup"], security["fsGroup"]) == (int(user), int(group), int(group))
    for container in pod.get("initContainers", []):
        assert f"{container['command'][0].removesuffix('/bin/python')} " in image.replace("\n", " ")


def test_replicas_are_left_to_the_autoscaler() -> None:
    [deployment] = find(render(compose("cpu", "autoscaling")), "Deployment")
    [scaled] = find(render(compose("cpu", "autoscaling")), "ScaledObject")
    assert "replicas" not in deployment["spec"]
    assert scaled["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert 2 <= scaled["spec"]["minReplicaCount"] < scaled["spec"]["maxReplicaCount"]


def test_the_guides_prometheus_rules_are_valid_and_have_the_label_that_the_operator_selects() -> None:
    [command] = re.findall(r"^```sh\n(release=.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
    shell = f'kubectl() {{ [ "$3" != apply ] || cat; }}\n{command}'
    created = subprocess.run(["bash", "-euc", shell], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    rules = [manifest for manifest in yaml.safe_load_all(created) if manifest]
    for name, rule in zip(("recording", "alerts"), rules, strict=True):
        PrometheusRule.model_validate(rule, extra="forbid")
        assert rule["metadata"] == {"name": f"centernet-{name}", "labels": {"release": "kube-prometheus-stack"}}
        assert rule["spec"] == yaml.safe_load((ROOT / "docker" / "prometheus" / f"{name}.yml").read_text())
