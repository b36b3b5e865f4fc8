"""Runs the README's commands in order in a fresh copy of the checkout, as a new user would."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import httpx
import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
RUN_BY_CI = {"make test", "make check"}  # they run this test
TOO_SLOW = {"make soak", "make fuzz"}
SERVERS = ("make serve", "python -m app")


def list_commands() -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [command for line in lines if (command := line.split(" #")[0].strip())]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the tracked and untracked files, with a photo and with nothing installed."""
    folder = tmp_path_factory.mktemp("checkout")
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    for name in subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    gradient = np.linspace(0, 255, 640 * 480 * 3).reshape(480, 640, 3).astype(np.uint8)
    Image.fromarray(gradient).save(folder / "photo.jpg")
    yield folder
    shutil.rmtree(folder)  # the environments installed in it take gigabytes


@contextlib.contextmanager
def running(command: str, folder: Path, environment: dict[str, str]) -> Iterator[str]:
    """Starts a server, yields the address that it prints, and stops it with SIGTERM."""
    process = subprocess.Popen(
        command.split(), cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    try:
        address = next((found[0] for line in process.stdout if (found := re.findall(r"http://\S+", line))), None)
        assert address is not None, f"{command} ended with {process.wait()}"
        reader = threading.Thread(target=drain, args=(process.stdout,))
        reader.start()
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)
    reader.join(30)
    process.stdout.close()


def drain(stream: IO[str]) -> None:
    for _ in stream:
        pass


@pytest.mark.skipif(shutil.which("git") is None or not (ROOT / ".git").exists(), reason="not in a git checkout")
def test_readme_commands_succeed_in_order(checkout: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("CENTERNET_")}
    environment["PATH"] = f"{checkout}/.venv/bin:{environment['PATH']}"  # as `activate` does for the commands after it
    answers = []
    with contextlib.ExitStack() as server:
        for command in list_commands():
            if command in RUN_BY_CI:
                assert command in (ROOT / ".ci" / "run").read_text()
            elif command in TOO_SLOW:
                assert f"\n{command.split()[1]}:" in (ROOT / "Makefile").read_text()
            elif command.startswith("docker"):
                assert command.startswith("docker compose up")  # run by `make try-compose`
            elif command.startswith(SERVERS):
                server.close()
                address = server.enter_context(running(command, checkout, environment))
                assert address == "http://127.0.0.1:8000"
                assert httpx.get(f"{address}/health/live").status_code == 200
            else:
                done = subprocess.run(
                    command, cwd=checkout, env=environment, shell=True, text=True, capture_output=True, check=False
                )
                assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
                if command.startswith("curl") and " -o " not in command:
                    answers.append(json.loads(done.stdout))
    assert [answer["model"] for answer in answers] == ["default", "tiny"]
    for answer in answers:
        assert {"model", "image", "detections", "timings_ms"} == set(answer)
    assert answers[0]["image"] == {"width": 640, "height": 480}
    assert answers[1]["detections"]
    with Image.open(checkout / "boxes.jpg") as drawn:
        assert (drawn.format, drawn.size) == ("JPEG", (640, 480))


def test_readme_response_matches_the_schema() -> None:
    from app.schemas import Answer

    [shown] = re.findall(r"^```json\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    Answer.model_validate_json(shown, strict=True)
