"""Tries docker-compose.yml for real, `make try-compose`: builds, serves, scrapes, trains, stops, and cleans up.

What needs a GPU or an image that cannot be had is left out, and the script says so. Exits with 1 where anything fails.
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
from training.generate import generate_pictures

_STARTED = time.monotonic()
_NOBODY = "10001:10001"
# series that a server that is well has not: their panels stay empty
_EMPTY_PANELS = {"Alerts"}


def say(text: str) -> None:
    print(f"{time.monotonic() - _STARTED:4.0f} s  {text}", flush=True)


def wait_for(what: str, seconds: float, ask: Callable[[], Any]) -> Any:
    """Asks until the answer is true, and gives it; ends the script where it takes too long."""
    ends = time.monotonic() + seconds
    while True:
        answer: Any = None
        with contextlib.suppress(httpx.TransportError):
            answer = ask()
        if answer:
            return answer
        if time.monotonic() > ends:
            raise SystemExit(f"after {seconds:.0f} s: not {what}")
        time.sleep(0.5)


def expect(holds: object, what: str) -> None:
    if not holds:
        raise SystemExit(f"not so: {what}")
    say(what)


@contextlib.contextmanager
def make_data() -> Iterator[Path]:
    """A folder as TRAIN_DATA is, with a recipe that gives clear peaks: `export` compares them with the graph's."""
    with tempfile.TemporaryDirectory(prefix="centernet-compose-") as name:
        folder = Path(name)
        generate_pictures(folder, 200, seed=0)
        recipe = (ROOT / "training/configs/tiny.toml").read_text()
        for old, new in {
            '"tiny"': '"trained"',
            "input_size = 160": "input_size = 96",
        }.items():
            assert old in recipe
            recipe = recipe.replace(old, new)
        (folder / "train.toml").write_text(recipe)
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)  # the container's user reads it
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
            raise SystemExit(f"{image} or its base is not there")
        size, below = facts["Size"] / 1e6, base["Size"] / 1e6
        say(f"{image}: {size:.0f} MB, {size - below:.0f} MB above its base; built in {seconds:.0f} s")
        expect(facts["Config"]["User"] == _NOBODY, f"{image} runs as {_NOBODY}")


def check_server(project: Project, server: httpx.Client, photo: bytes) -> None:
    wait_for("healthy", 90, lambda: project.inspect("server")["State"]["Health"]["Status"] == "healthy")
    say("the container is healthy")
    container = project.find_container("server")
    expect(
        project.inspect("server")["Path"] == "/opt/centernet/bin/centernet-serve", "no shell comes before the server"
    )
    for path in ("/", "/opt/centernet", "/models"):
        write = f"open('{path}/written', 'w')"
        said = run("docker", "exec", container, "/opt/centernet/bin/python", "-c", write, check=False)
        expect("Read-only file system" in said, f"{path} cannot be written to")
    answer = server.post("/detect", content=photo)
    expect(
        answer.status_code == 200 and answer.json()["model"] == "default", "a photo is answered by the shipped model"
    )
    expect(server.post("/detect", content=b"no photo").status_code == 415, "what is no photo is refused")
    expect(server.get("/metrics").status_code == 404, "the metrics are not on the published port")


def check_prometheus(project: Project, server: httpx.Client, photo: bytes) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{project.ports['PROMETHEUS_PORT']}/api/v1/") as prometheus:

        def ask(path: str, **query: str) -> Any:
            return prometheus.get(path, params=query).raise_for_status().json()["data"]

        def find_empty_panels() -> list[str]:
            server.post("/detect", content=photo, params={"threshold": 0})
            server.post("/detect", content=b"no photo")
            return [title for title, query, _ in list_queries() if not ask("query", query=query)["result"]]

        def is_up() -> bool:
            return [each["health"] for each in ask("targets")["activeTargets"]] == ["up"]

        wait_for("up", 60, is_up)
        say("Prometheus has its target up")
        files = [yaml.safe_load((DOCKER / "prometheus" / name).read_text()) for name in ("recording.yml", "alerts.yml")]
        written = {rule.get("alert") or rule["record"] for file in files for rule in file["groups"][0]["rules"]}
        rules = [rule for group in ask("rules")["groups"] for rule in group["rules"]]
        expect({rule["name"] for rule in rules} == written, f"{len(rules)} rules are loaded")
        wait_for("data in every panel", 120, lambda: set(find_empty_panels()) <= _EMPTY_PANELS)
        say(f"{sum(1 for _ in list_queries())} queries of the dashboard find data")
        faults = [rule for group in ask("rules")["groups"] for rule in group["rules"] if rule["health"] != "ok"]
        expect(not faults, "the rules are computed without a fault")
        expect(not ask("alerts")["alerts"], "no alert waits or fires")


def check_grafana(project: Project) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{project.ports['GRAFANA_PORT']}/api/") as grafana:
        wait_for("Grafana", 90, lambda: grafana.get("health").is_success)
        expect(grafana.get("dashboards/uid/centernet").is_success, "Grafana has the dashboard")
        asked = grafana.get("datasources/proxy/uid/prometheus/api/v1/query", params={"query": "up"})
        expect(asked.is_success and asked.json()["data"]["result"], "Grafana reaches Prometheus")


def check_training(project: Project, server: httpx.Client, photo: bytes) -> None:
    project.compose("run", "--rm", "-T", "train", show=True)
    say("training has ended and exported")
    wait_for("served", 60, lambda: server.get("/models").json()["models"][0]["name"] == "trained")
    answer = server.post("/detect", content=photo, params={"threshold": 0})
    expect(answer.status_code == 200 and answer.json()["model"] == "trained", "the running server has taken it up")
    answer = server.post("/detect", content=photo, params={"model": "default"})
    expect(answer.json()["model"] == "default", "and serves the shipped model beside it")


def check_stop(project: Project, photo: bytes) -> None:
    """A request whose body is still to come when SIGTERM does is answered; nobody else is let in."""
    port = project.ports["SERVER_PORT"]
    head = f"POST /detect HTTP/1.1\r\nHost: server\r\nContent-Length: {len(photo)}\r\nConnection: close\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(head.encode() + photo[:1000])
        time.sleep(1)  # through the engine's proxy
        stop = threading.Thread(target=project.compose, args=("stop", "server"))
        stop.start()
        wait_for("refusing connections", 10, lambda: not is_answering(port))
        connection.sendall(photo[1000:])
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
        stop.join()
    expect(answer.startswith(b"HTTP/1.1 200 "), "a request that was under way at SIGTERM is answered")
    state = project.inspect("server")["State"]
    expect((state["ExitCode"], state["OOMKilled"]) == (0, False), "the server has ended by itself, with status 0")


def is_answering(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health/live", timeout=5).is_success
    except httpx.TransportError:
        return False


def main() -> None:
    parser = argparse.ArgumentParser("make try-compose", description=__doc__)
    parser.add_argument("--without-training", action="store_true", help="leave out the large image, and what it does")
    parsed = parser.parse_args()
    try:
        compose = find_compose()
    except NoEngine as error:
        raise SystemExit(f"docker-compose.yml cannot be tried: {error}") from None
    say(" ".join([*compose, run(*compose, "version", "--short").strip()]))
    with make_data() as data:
        picture = cv2.imread(str(next((data / "images").glob("val_*.png"))))
        photo = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
        project = Project(f"centernet-try-{os.getpid()}", {"TRAIN_DATA": str(data)})
        try:
            try_all(project, photo, not parsed.without_training)
        except BaseException:
            print(project.compose("logs", "--no-color", "--tail", "60", check=False), file=sys.stderr)
            raise
        finally:
            project.remove()
    expect(not project.list_what_is_left(), "containers and volumes are gone again")
    say("all of it holds")


def try_all(project: Project, photo: bytes, train: bool) -> None:
    services = ["server", "prometheus"]
    images = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    grafana = images["grafana"]["image"]
    if find_image(grafana):
        services.append("grafana")
    else:
        say(f"{grafana} cannot be had: Grafana is not tried")
    say("server-gpu and train-gpu need a GPU: they are not tried")
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
