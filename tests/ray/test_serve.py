"""The shipped Ray Serve configuration, run by `serve run` with the model of colours."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from app.server import create_app
from app.settings import Settings
from model.detector import Detector
from tests.app.colours import GREEN_FOUND, PHOTO_PNG, RED_FOUND, describe, save_model
from tests.ray.conftest import ROOT

SECONDS = 180  # limit for each wait on Ray, ample for a busy machine


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the served models."""
    folder = tmp_path_factory.mktemp("models")
    save_model(folder / "colours.onnx")
    return folder


@pytest.fixture(scope="module")
def client(
    ray_environment: Mapping[str, str], folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx.Client]:
    """A client of a deployment that scales from one replica to two."""
    config = yaml.safe_load((ROOT / "docker" / "ray" / "serve.yaml").read_text())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config["http_options"]["port"] = port
    application = config["applications"][0]
    application["runtime_env"]["env_vars"] = {"CENTERNET_MODEL": str(folder), "CENTERNET_PROVIDER": "cpu"}
    scaling = application["deployments"][0]["autoscaling_config"]
    scaling |= {"max_replicas": 2, "target_ongoing_requests": 1, "upscale_delay_s": 1, "metrics_interval_s": 1}
    path = tmp_path_factory.mktemp("serve") / "serve.yaml"
    path.write_text(yaml.safe_dump(config))
    command = [str(Path(sys.executable).with_name("serve")), "run", str(path)]
    with (
        subprocess.Popen(command, cwd=ROOT, env=ray_environment, start_new_session=True) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=SECONDS) as client,
    ):
        try:
            wait_until_ready(client, process)
            yield client
        finally:
            process.terminate()  # not SIGINT, which is ignored when the tests run in the background


def wait_until_ready(client: httpx.Client, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, "`serve run` has exited"
        try:
            if client.get("/health/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    pytest.fail("no replica came up")


def read_samples(client: httpx.Client, name: str) -> list[Sample]:
    families = text_string_to_metric_families(client.get("/metrics").text)
    return [sample for family in families for sample in family.samples if sample.name == name]


def test_load_adds_a_replica_and_metrics_cover_all_replicas(client: httpx.Client) -> None:
    assert len({sample.labels["replica"] for sample in read_samples(client, "process_start_time_seconds")}) == 1
    responses, deadline = 0, time.monotonic() + SECONDS
    with ThreadPoolExecutor(16) as pool:
        busy: set[str] = set()
        while len(busy) < 2:
            assert time.monotonic() < deadline, "no second replica was added"
            statuses = list(pool.map(lambda _: client.post("/detect", content=PHOTO_PNG).status_code, range(64)))
            assert set(statuses) == {200}
            responses += len(statuses)
            samples = [
                each for each in read_samples(client, "centernet_requests_total") if each.labels["route"] == "/detect"
            ]
            busy = {each.labels["replica"] for each in samples}
    assert sum(sample.value for sample in samples) == responses
    assert sum(sample.value for sample in read_samples(client, "centernet_batch_size_sum")) == responses


def test_responses_equal_those_of_the_server_without_ray(client: httpx.Client, folder: Path) -> None:
    app = create_app(Settings(model=folder, provider="cpu"), Detector(folder / "colours.onnx", "cpu", 1))
    assert client.get("/openapi.json").json() == app.openapi()
    response = client.post("/detect", content=PHOTO_PNG)
    assert response.json()["detections"] == [RED_FOUND, GREEN_FOUND]
    assert response.headers.get_list("X-Request-ID") == [response.headers["X-Request-ID"]]
    rejection = client.post("/detect", content=b"no image", headers={"X-Request-ID": "mine"})
    assert (rejection.status_code, rejection.headers["content-type"]) == (415, "application/problem+json")
    assert rejection.json()["type"] == "/docs#unknown-format"
    assert rejection.headers.get_list("X-Request-ID") == [rejection.json()["request_id"]] == ["mine"]
    too_large = client.post("/detect", content=bytes(30_000_000))
    assert (too_large.status_code, too_large.json()["type"]) == (413, "/docs#body-too-large")


def test_every_replica_loads_a_new_model(client: httpx.Client, folder: Path) -> None:
    save_model(folder / "more.onnx", describe(name="more").to_properties())
    (folder / "broken.onnx").write_bytes(b"no model")
    answer: dict[str, Any] = client.post("/models/reload").json()
    (folder / "broken.onnx").unlink()
    assert {model["name"] for model in answer["models"]} == {"colours", "more"}
    assert [refusal["file"] for refusal in answer["refused"]] == ["broken.onnx"]
    replicas = {sample.labels["replica"] for sample in read_samples(client, "process_start_time_seconds")}
    served = {
        (sample.labels["replica"], sample.labels["model"]) for sample in read_samples(client, "centernet_model_info")
    }
    assert served == {(replica, model) for replica in replicas for model in ("colours", "more")}


def test_request_of_a_disconnected_client_is_dropped(client: httpx.Client) -> None:
    before = sum(sample.value for sample in read_samples(client, "centernet_body_bytes"))
    with socket.create_connection((client.base_url.host, client.base_url.port)) as connection:
        connection.sendall(b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc")
        wait_for(client, "centernet_body_bytes", before + 3)
    wait_for(client, "centernet_body_bytes", before)


def wait_for(client: httpx.Client, name: str, value: float) -> None:
    deadline = time.monotonic() + SECONDS
    while sum(sample.value for sample in read_samples(client, name)) != value:
        assert time.monotonic() < deadline, f"{name} did not become {value}"
