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
    """The environment in which commands find a Ray of four CPUs, which ends with these tests."""
    pytest.importorskip("ray")
    if not Path("/proc/self").exists():
        pytest.skip("what Ray leaves behind is found below /proc")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("CENTERNET_", "RAY_"))}
    environment |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # Ray's 15 would have its processes wait for whatever else this machine does
    }
    with tempfile.TemporaryDirectory(
        prefix="ray-", ignore_cleanup_errors=True
    ) as folder:  # its sockets need short paths
        cluster, address = start_cluster(environment, folder)
        try:
            assert address, "Ray did not start"
            yield environment | {"RAY_ADDRESS": address}
        finally:
            cluster.communicate(timeout=60)
            kill_session(cluster.pid)


def start_cluster(environment: Mapping[str, str], folder: str, tries: int = 3) -> tuple[subprocess.Popen[str], str]:
    """Returns the process that holds a cluster, and its address; empty where Ray did not start."""
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
    return start_cluster(environment, folder, tries - 1)  # Ray gives itself 30 seconds, too few on a busy machine


def kill_session(session: int) -> None:
    """Ends what is left of the processes that a test has started."""
    for pid in (int(each.name) for each in Path("/proc").iterdir() if each.name.isdecimal()):
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(pid) == session:
                os.kill(pid, signal.SIGKILL)
