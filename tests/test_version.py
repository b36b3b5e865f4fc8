"""What a version names is the same everywhere."""

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

from app import __version__

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("module", "command"),
    [("app", "centernet-serve"), ("app detect", "centernet-detect"), ("training", "centernet-train")],
)
def test_commands_say_their_version(module: str, command: str) -> None:
    said = subprocess.run(
        [sys.executable, "-m", *module.split(), "--version"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert (said.stdout, said.stderr) == (f"{command} {__version__}\n", "")


def test_the_package_is_of_the_version_that_the_server_names() -> None:
    assert importlib.metadata.version("centernet-service") == __version__


def test_manifests_and_their_documentation_name_the_version() -> None:
    files = [
        *(ROOT / "docker" / "kubernetes").rglob("*.yaml"),
        ROOT / "docs" / "kubernetes.md",
        ROOT / "docs" / "releases.md",
    ]
    text = "\n".join(file.read_text() for file in files)
    named = re.findall(r"(?:centernet-service[:-]|newTag: )(\d+\.\d+\.\d+)", text)
    assert len(named) >= 5
    assert set(named) == {__version__}


def test_the_version_is_told_of_in_the_changelog() -> None:
    versions = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == __version__
    assert versions == sorted(versions, key=lambda version: [*map(int, version.split("."))], reverse=True)
