"""Renders docker/kubernetes with `kubectl kustomize`."""

import functools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "kubernetes.md").read_text()
OVERLAYS = ["cpu", "gpu"]
COMPONENTS = ["monitoring", "autoscaling", "keys", "model-volume", "model-image", "model-download"]

# this environment's kubectl first: its version is pinned
KUBECTL = shutil.which("kubectl", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
needs_kubectl = pytest.mark.skipif(KUBECTL is None, reason="kubectl is not installed")

Manifest = dict[str, Any]


@functools.cache
def render(kustomization: str) -> tuple[Manifest, ...]:
    """Returns the manifests that a kustomization.yaml renders in a folder beside `docker`."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "docker" / "kubernetes", Path(folder, "docker", "kubernetes"))
        Path(folder, "deploy").mkdir()
        Path(folder, "deploy", "kustomization.yaml").write_text(kustomization)
        command = [str(KUBECTL), "kustomize", f"{folder}/deploy"]
        rendered = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (rendered.returncode, rendered.stderr) == (0, "")
    return tuple(yaml.safe_load_all(rendered.stdout))


def compose(overlay: str, *components: str) -> str:
    """Returns a kustomization.yaml of an overlay and components."""
    kustomization: Manifest = {
        "namespace": "centernet",
        "resources": [f"../docker/kubernetes/overlays/{overlay}"],
        "components": [f"../docker/kubernetes/components/{component}" for component in components],
    }
    return yaml.safe_dump(kustomization)


def read_guide() -> list[str]:
    """Returns the YAML blocks of the guide: a complete kustomization, and a patch for model images."""
    return re.findall(r"^```yaml\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)


def list_kustomizations() -> list[str]:
    """Returns kustomizations that together cover every overlay and component."""
    complete, patch = read_guide()
    alone = [compose(overlay) for overlay in OVERLAYS]
    each = [compose(overlay, component) for overlay in OVERLAYS for component in COMPONENTS]
    return [*alone, *each, complete, compose("gpu", "monitoring", "autoscaling", "keys", "model-image") + patch]


def find(manifests: tuple[Manifest, ...], kind: str) -> Iterator[Manifest]:
    """Yields the manifests of a kind."""
    return (manifest for manifest in manifests if manifest["kind"] == kind)


def find_pod(manifests: tuple[Manifest, ...]) -> Manifest:
    """Returns the deployment's pod template."""
    [deployment] = find(manifests, "Deployment")
    template: Manifest = deployment["spec"]["template"]
    return template


def find_server(manifests: tuple[Manifest, ...]) -> Manifest:
    """Returns the server's container."""
    [server] = find_pod(manifests)["spec"]["containers"]
    assert server["name"] == "server"
    return server


def read_settings_map(manifests: tuple[Manifest, ...]) -> dict[str, str]:
    """Returns the environment variables that the server's container gets from its ConfigMap."""
    [reference] = find_server(manifests)["envFrom"]
    [settings] = [
        manifest
        for manifest in find(manifests, "ConfigMap")
        if manifest["metadata"]["name"] == reference["configMapRef"]["name"]
    ]
    data: dict[str, str] = settings["data"]
    return data
