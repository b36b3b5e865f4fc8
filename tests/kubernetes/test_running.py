"""Runs a server with a pod's settings and probes it as the kubelet would."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.settings import find_shipped_model
from tests.kubernetes.manifests import ROOT, find_pod, find_server, needs_kubectl, read_guide, read_settings_map, render

pytestmark = needs_kubectl

PORTS = {"CENTERNET_PORT": "0", "CENTERNET_METRICS_PORT": "0"}  # free ports


@pytest.fixture
def addresses(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Runs the guide's pod as a local process, with folders as volumes and on free ports; yields its addresses."""
    manifests = render(read_guide()[0])
    settings = read_settings_map(manifests)
    mounts = {mount["mountPath"]: tmp_path / mount["name"] for mount in find_server(manifests)["volumeMounts"]}
    for folder in mounts.values():
        folder.mkdir()
    (mounts["/etc/centernet"] / "keys").write_text("secret\n")
    shutil.copy(find_shipped_model(), mounts["/models"] / "model.onnx")
    mounted = re.compile(rf"^({'|'.join(map(re.escape, mounts))})(?=/|$)")
    settings = {name: mounted.sub(lambda found: str(mounts[found[0]]), value) for name, value in settings.items()}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CENTERNET_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "app"],
        cwd=ROOT,
        env=environment | settings | PORTS | {"CENTERNET_MAX_CONNECTIONS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            words = [process.stdout.readline().split() for _ in PORTS]
            assert all(words), "the server exited"
            yield dict(zip(("http", "metrics"), (line[-1] for line in words), strict=True))
        finally:
            process.send_signal(signal.SIGTERM)
            started = time.monotonic()
            process.wait(60)
    pause = find_server(manifests)["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert process.returncode == 0
    assert pause + time.monotonic() - started < find_pod(manifests)["spec"]["terminationGracePeriodSeconds"]


def send_probe(addresses: dict[str, str], probe: dict[str, Any]) -> int:
    """Sends a probe on a new connection and returns the status."""
    address = addresses[probe["httpGet"]["port"]] + probe["httpGet"]["path"]
    request = urllib.request.Request(address, headers={"Connection": "close"})
    try:
        with urllib.request.urlopen(request, timeout=probe["timeoutSeconds"]) as response:
            status: int = response.status
            return status
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def test_probes_need_no_key_and_liveness_holds_at_the_connection_limit(addresses: dict[str, str]) -> None:
    server = find_server(render(read_guide()[0]))
    startup, liveness, readiness = (server[f"{name}Probe"] for name in ("startup", "liveness", "readiness"))
    deadline = time.monotonic() + startup["failureThreshold"] * startup["periodSeconds"]
    while send_probe(addresses, startup) != 200:
        assert time.monotonic() < deadline
    assert send_probe(addresses, liveness) == 200
    assert send_probe(addresses, readiness) == 200
    with contextlib.ExitStack() as stack:
        host, port = addresses["http"].removeprefix("http://").split(":")
        client = stack.enter_context(socket.create_connection((host, int(port))))
        client.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(12) == b"HTTP/1.1 200"  # it holds the only connection
        assert send_probe(addresses, readiness) == 503
        assert send_probe(addresses, liveness) == 200
