"""Package, commands, manifests, documents and changelog name the same version."""

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
def test_commands_print_the_version(module: str, command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *module.split(), "--version"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == (f"{command} {__version__}\n", "")


def test_installed_package_has_the_version() -> None:
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


def test_changelog_begins_with_the_version() -> None:
    versions = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == __version__
    assert versions == sorted(versions, key=lambda version: [*map(int, version.split("."))], reverse=True)
