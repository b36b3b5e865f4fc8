import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.app.colours import save_model

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "colours.onnx")


@pytest.fixture(scope="package")
def ray_environment() -> Iterator[Mapping[str, str]]:
    """Environment variables to reach a Ray cluster of four CPUs and two GPUs, which runs for these tests."""
    pytest.importorskip("ray")
    if not Path("/proc/self").exists():
        pytest.skip("needs /proc to find the processes that Ray leaves running")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("CENTERNET_", "RAY_"))}
    environment |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # with Ray's default of 15, any other load on the machine slows its processes down
    }
    # not pytest's folder: sockets need short paths
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        cluster, address = start_cluster(environment, folder)
        try:
            assert address, "Ray did not start"
            yield environment | {"RAY_ADDRESS": address}
        finally:
            cluster.communicate(timeout=60)
            kill_session(cluster.pid)


def start_cluster(environment: Mapping[str, str], folder: str, tries: int = 3) -> tuple[subprocess.Popen[str], str]:
    """Starts a cluster; returns its process and its address, which is empty if Ray did not start."""
    command = [sys.executable, "-m", "tests.ray.cluster", folder]
    pipe = subprocess.PIPE
    cluster = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, text=True, start_new_session=True
    )
    assert cluster.stdout is not None
    address = cluster.stdout.readline().strip()
    if address or tries == 1:
        return cluster, address
    cluster.communicate()
    kill_session(cluster.pid)
    return start_cluster(environment, folder, tries - 1)  # Ray's own limit of 30 seconds is too short on a busy machine


def kill_session(session: int) -> None:
    """Kills the processes that remain in a session."""
    for pid in (int(each.name) for each in Path("/proc").iterdir() if each.name.isdecimal()):
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(pid) == session:
                os.kill(pid, signal.SIGKILL)
