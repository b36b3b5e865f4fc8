"""End-to-end test of docker-compose.yml, `make try-compose`: builds, serves, scrapes, trains, stops and cleans up.

Skips, and says so, what needs a GPU or an image that cannot be pulled. Exits with 1 on the first failure.
"""

import argparse
import contextlib
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import httpx
import yaml

from tests.compose.dashboard import list_queries
from tests.compose.engine import NoEngine, Project, find_compose, find_image, run
from tests.compose.files import DOCKER, ROOT
from training.generate import generate_dataset

_STARTED = time.monotonic()
_USER = "10001:10001"
# panels of series that a healthy server does not have
_EMPTY_PANELS = {"Alerts"}


def log(text: str) -> None:
    print(f"{time.monotonic() - _STARTED:4.0f} s  {text}", flush=True)


def wait_for(what: str, seconds: float, poll: Callable[[], Any]) -> Any:
    """Polls until the result is true, and returns it; ends the script after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        result: Any = None
        with contextlib.suppress(httpx.TransportError):
            result = poll()
        if result:
            return result
        if time.monotonic() > deadline:
            raise SystemExit(f"timed out after {seconds:.0f} s waiting for {what}")
        time.sleep(0.5)


def expect(holds: object, what: str) -> None:
    """Logs a statement that holds; ends the script with one that does not."""
    if not holds:
        raise SystemExit(f"FAILED: {what}")
    log(what)


@contextlib.contextmanager
def make_data() -> Iterator[Path]:
    """Writes a folder for TRAIN_DATA; its recipe gives clear peaks, as `export` compares them with the graph's."""
    with tempfile.TemporaryDirectory(prefix="centernet-compose-") as name:
        folder = Path(name)
        generate_dataset(folder, 200, seed=0)
        recipe = (ROOT / "training/configs/tiny.toml").read_text()
        for old, new in {
            '"tiny"': '"trained"',
            "input_size = 160": "input_size = 96",
            "generate = 300": "generate = 0",
        }.items():
            assert old in recipe
            recipe = recipe.replace(old, new)
        (folder / "train.toml").write_text(recipe)
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)  # readable for the container's user
        yield folder


def build(project: Project, services: list[str]) -> None:
    for service in services:
        started = time.monotonic()
        project.compose("build", service, show=True)
        image = {"server": "centernet-service:cpu", "train": "centernet-train"}[service]
        seconds = time.monotonic() - started
        facts = find_image(image)
        base = find_image(facts["Config"]["Labels"]["org.opencontainers.image.base.name"]) if facts else None
        if not facts or not base:
            raise SystemExit(f"{image} or its base image is missing")
        size, base_size = facts["Size"] / 1e6, base["Size"] / 1e6
        log(f"{image}: {size:.0f} MB, {size - base_size:.0f} MB above its base; built in {seconds:.0f} s")
        expect(facts["Config"]["User"] == _USER, f"{image} runs as {_USER}")


def check_server(project: Project, server: httpx.Client, photo: bytes) -> None:
    wait_for(
        "the container to be healthy", 90, lambda: project.inspect("server")["State"]["Health"]["Status"] == "healthy"
    )
    log("the container is healthy")
    container = project.find_container("server")
    expect(project.inspect("server")["Path"] == "/opt/centernet/bin/centernet-serve", "no shell wraps the server")
    for path in ("/", "/opt/centernet", "/models"):
        write = f"open('{path}/written', 'w')"
        output = run("docker", "exec", container, "/opt/centernet/bin/python", "-c", write, check=False)
        expect("Read-only file system" in output, f"{path} is read-only")
    response = server.post("/detect", content=photo)
    expect(
        response.status_code == 200 and response.json()["model"] == "default", "the shipped model answers for a photo"
    )
    expect(server.post("/detect", content=b"no photo").status_code == 415, "a body that is no image is rejected")
    expect(server.get("/metrics").status_code == 404, "the metrics are not on the published port")


def check_prometheus(project: Project, server: httpx.Client, photo: bytes) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{project.ports['PROMETHEUS_PORT']}/api/v1/") as prometheus:

        def get(path: str, **query: str) -> Any:
            return prometheus.get(path, params=query).raise_for_status().json()["data"]

        def find_empty_panels() -> list[str]:
            server.post("/detect", content=photo, params={"threshold": 0})
            server.post("/detect", content=b"no photo")
            return [title for title, query, _ in list_queries() if not get("query", query=query)["result"]]

        def is_up() -> bool:
            return [each["health"] for each in get("targets")["activeTargets"]] == ["up"]

        wait_for("Prometheus to scrape the server", 60, is_up)
        log("Prometheus scrapes the server")
        files = [yaml.safe_load((DOCKER / "prometheus" / name).read_text()) for name in ("recording.yml", "alerts.yml")]
        defined = {rule.get("alert") or rule["record"] for file in files for rule in file["groups"][0]["rules"]}
        rules = [rule for group in get("rules")["groups"] for rule in group["rules"]]
        expect({rule["name"] for rule in rules} == defined, f"{len(rules)} rules are loaded")
        wait_for("data in every panel", 120, lambda: set(find_empty_panels()) <= _EMPTY_PANELS)
        log(f"{sum(1 for _ in list_queries())} dashboard queries return data")
        failed = [rule for group in get("rules")["groups"] for rule in group["rules"] if rule["health"] != "ok"]
        expect(not failed, "all rules are evaluated without errors")
        expect(not get("alerts")["alerts"], "no alert is pending or firing")


def check_grafana(project: Project) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{project.ports['GRAFANA_PORT']}/api/") as grafana:
        wait_for("Grafana to be healthy", 90, lambda: grafana.get("health").is_success)
        expect(grafana.get("dashboards/uid/centernet").is_success, "Grafana has the dashboard")
        response = grafana.get("datasources/proxy/uid/prometheus/api/v1/query", params={"query": "up"})
        expect(response.is_success and response.json()["data"]["result"], "Grafana reaches Prometheus")


def check_training(project: Project, server: httpx.Client, photo: bytes) -> None:
    project.compose("run", "--rm", "-T", "train", show=True)
    log("training has finished and exported a model")
    wait_for(
        "the trained model to be served", 60, lambda: server.get("/models").json()["models"][0]["name"] == "trained"
    )
    response = server.post("/detect", content=photo, params={"threshold": 0})
    expect(response.status_code == 200 and response.json()["model"] == "trained", "the running server has loaded it")
    response = server.post("/detect", content=photo, params={"model": "default"})
    expect(response.json()["model"] == "default", "the shipped model is still served")


def check_stop(project: Project, photo: bytes) -> None:
    """SIGTERM lets an in-flight request finish, even one whose body is still arriving, and refuses new connections."""
    port = project.ports["SERVER_PORT"]
    head = f"POST /detect HTTP/1.1\r\nHost: server\r\nContent-Length: {len(photo)}\r\nConnection: close\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(head.encode() + photo[:1000])
        time.sleep(1)  # until the engine's proxy has passed it on
        stop = threading.Thread(target=project.compose, args=("stop", "server"))
        stop.start()
        wait_for("the server to refuse connections", 10, lambda: not is_answering(port))
        connection.sendall(photo[1000:])
        response = b"".join(iter(lambda: connection.recv(65536), b""))
        stop.join()
    expect(response.startswith(b"HTTP/1.1 200 "), "a request in flight at SIGTERM is answered")
    state = project.inspect("server")["State"]
    expect((state["ExitCode"], state["OOMKilled"]) == (0, False), "the server has exited by itself with status 0")


def is_answering(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health/live", timeout=5).is_success
    except httpx.TransportError:
        return False


def main() -> None:
    parser = argparse.ArgumentParser("make try-compose", description=__doc__)
    parser.add_argument("--without-training", action="store_true", help="skip the training image, which is large")
    parsed = parser.parse_args()
    try:
        compose = find_compose()
    except NoEngine as error:
        raise SystemExit(f"docker-compose.yml cannot be tested: {error}") from None
    log(" ".join([*compose, run(*compose, "version", "--short").strip()]))
    with make_data() as data:
        picture = cv2.imread(str(next((data / "images").glob("val_*.png"))))
        photo = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
        project = Project(f"centernet-try-{os.getpid()}", {"TRAIN_DATA": str(data)})
        try:
            check_all(project, photo, not parsed.without_training)
        except BaseException:
            print(project.compose("logs", "--no-color", "--tail", "60", check=False), file=sys.stderr)
            raise
        finally:
            project.remove()
    expect(not project.list_resources(), "containers and volumes are removed")
    log("all checks passed")


def check_all(project: Project, photo: bytes, train: bool) -> None:
    services = ["server", "prometheus"]
    grafana = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["grafana"]["image"]
    if find_image(grafana):
        services.append("grafana")
    else:
        log(f"{grafana} cannot be pulled: Grafana is skipped")
    log("server-gpu and train-gpu need a GPU: they are skipped")
    build(project, ["server", "train"] if train else ["server"])
    project.compose("up", "--detach", *services, show=True)
    with httpx.Client(base_url=f"http://127.0.0.1:{project.ports['SERVER_PORT']}", timeout=60) as server:
        check_server(project, server, photo)
        check_prometheus(project, server, photo)
        if "grafana" in services:
            check_grafana(project)
        if train:
            check_training(project, server, photo)
    check_stop(project, photo)


if __name__ == "__main__":
    main()
