"""Runs Docker and Compose: the plugin of version 2, or docker-compose 1.29."""

import functools
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Mapping
from typing import Any

from tests.compose.files import ROOT


class NoEngine(Exception):
    """Docker or Compose is unavailable; the message says why."""


def run(*command: str, check: bool = True, show: bool = False, environment: Mapping[str, str] | None = None) -> str:
    """Runs a command in the repository's root and returns its output; `show` prints the output instead."""
    output = None if show else subprocess.PIPE
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        stdout=output,
        stderr=None if show else subprocess.STDOUT,
        text=True,
    )
    if check and done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}\n{done.stdout or ''}")
    return done.stdout or ""


def find_compose() -> list[str]:
    """Returns the command that runs Compose. Raises `NoEngine`."""
    if shutil.which("docker") is None:
        raise NoEngine("docker is not installed")
    info = subprocess.run(["docker", "info"], capture_output=True, text=True)
    if info.returncode:
        raise NoEngine(f"no Docker engine answers: {info.stderr.strip()}")
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]) and not subprocess.run([*command, "version"], capture_output=True).returncode:
            return command
    raise NoEngine("neither docker compose nor docker-compose is installed")


class Project:
    """A Compose project on free ports of this machine, with the given environment variables."""

    def __init__(self, name: str, variables: Mapping[str, str]) -> None:
        self.ports = {name: find_port() for name in ("SERVER_PORT", "PROMETHEUS_PORT", "GRAFANA_PORT")}
        self._environment = {
            "COMPOSE_PROJECT_NAME": name,
            "COMPOSE_PROFILES": "cpu,train",
            "SERVER_ADDRESS": "127.0.0.1",
            **{port: str(number) for port, number in self.ports.items()},
            **variables,
        }
        self._compose = find_compose()

    def compose(self, *arguments: str, check: bool = True, show: bool = False) -> str:
        return run(*self._compose, *arguments, check=check, show=show, environment=self._environment)

    def remove(self) -> None:
        """Stops the project and removes its containers, networks and volumes; its images stay."""
        self.compose("down", "--volumes", "--remove-orphans", "--timeout", "20", show=True)

    def list_resources(self) -> list[str]:
        """Returns the ids of the project's containers and volumes."""
        own = f"label=com.docker.compose.project={self._environment['COMPOSE_PROJECT_NAME']}"
        containers = run("docker", "ps", "--all", "--quiet", "--filter", own)
        return (containers + run("docker", "volume", "ls", "--quiet", "--filter", own)).split()

    def inspect(self, service: str) -> dict[str, Any]:
        """Returns `docker inspect` of a service's container."""
        [container] = json.loads(run("docker", "inspect", self.find_container(service)))
        return dict(container)

    @functools.cache  # noqa: B019  # one project per process
    def find_container(self, service: str) -> str:
        return self.compose("ps", "--quiet", service).split()[-1]


def find_image(image: str) -> dict[str, Any] | None:
    """Returns `docker image inspect` of an image, pulled if missing; None if it cannot be pulled."""
    for _ in range(2):
        found = subprocess.run(["docker", "image", "inspect", image], capture_output=True, text=True)
        if not found.returncode:
            return dict(json.loads(found.stdout)[0])
        run("docker", "pull", "--quiet", image, check=False)
    return None


def find_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
