"""Docker and Compose, as a script uses them: the plugin of version 2, or docker-compose 1.29."""

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
    """There is no Docker engine to try with; the message says what is missing."""


def run(*command: str, check: bool = True, show: bool = False, environment: Mapping[str, str] | None = None) -> str:
    """Runs a command and gives what it prints; `show` lets it go to this process' own output."""
    output = None if show else subprocess.PIPE
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        stdout=output,
        stderr=None if show else -2,
        text=True,
    )
    if check and done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}\n{done.stdout or ''}")
    return done.stdout or ""


def find_compose() -> list[str]:
    """The command of Compose; raises `NoEngine`."""
    if shutil.which("docker") is None:
        raise NoEngine("docker is not installed")
    asked = subprocess.run(["docker", "info"], capture_output=True, text=True)
    if asked.returncode:
        raise NoEngine(f"no Docker engine answers: {asked.stderr.strip()}")
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]) and not subprocess.run([*command, "version"], capture_output=True).returncode:
            return command
    raise NoEngine("neither docker compose nor docker-compose is installed")


class Project:
    """One project of Compose, with ports and a data folder of its own."""

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
        """Stops and removes everything of the project but its images."""
        self.compose("down", "--volumes", "--remove-orphans", "--timeout", "20", show=True)

    def list_what_is_left(self) -> list[str]:
        """The project's containers and volumes."""
        ours = f"label=com.docker.compose.project={self._environment['COMPOSE_PROJECT_NAME']}"
        containers = run("docker", "ps", "--all", "--quiet", "--filter", ours)
        return (containers + run("docker", "volume", "ls", "--quiet", "--filter", ours)).split()

    def inspect(self, service: str) -> dict[str, Any]:
        """What the engine knows of a service's container."""
        [container] = json.loads(run("docker", "inspect", self.find_container(service)))
        return dict(container)

    @functools.cache  # noqa: B019  # one project for one run
    def find_container(self, service: str) -> str:
        return self.compose("ps", "--quiet", service).split()[-1]


def find_image(image: str) -> dict[str, Any] | None:
    """What the engine knows of an image, pulled where need be; None where it cannot be had."""
    for _ in range(2):
        asked = subprocess.run(["docker", "image", "inspect", image], capture_output=True, text=True)
        if not asked.returncode:
            return dict(json.loads(asked.stdout)[0])
        run("docker", "pull", "--quiet", image, check=False)
    return None


def find_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
