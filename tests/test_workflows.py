"""GitHub's workflows run the targets of `.ci/run` and the Makefile, with least privilege."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from app import __version__

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text()
WORKFLOWS: dict[str, Any] = {
    path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / ".github" / "workflows").glob("*.yml")
}


def find_steps(workflow: str) -> list[dict[str, Any]]:
    return [step for job in WORKFLOWS[workflow]["jobs"].values() for step in job.get("steps", [])]


def test_github_runs_the_targets_of_ci() -> None:
    [job] = WORKFLOWS["test"]["jobs"].values()
    targets = re.findall(r"^make (\S+)$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert sorted(job["strategy"]["matrix"]["target"]) == sorted(targets)
    assert "make ${{ matrix.target }}" in [step.get("run") for step in find_steps("test")]


def test_a_change_of_what_the_images_consist_of_builds_them() -> None:
    paths = WORKFLOWS["images"][True]["pull_request"]["paths"]  # YAML reads on as true
    files = "\n".join(file.read_text() for file in (ROOT / "docker").glob("*.Dockerfile"))
    copied = {source for line in re.findall(r"^COPY (?!--)(.+) \S+$", files, re.MULTILINE) for source in line.split()}
    assert copied >= {"pyproject.toml", "training"}
    assert {source.split("/")[0] for source in copied} <= {path.removesuffix("/**") for path in paths}


def test_make_targets_in_workflows_exist() -> None:
    commands = [step.get("run", "") for workflow in WORKFLOWS for step in find_steps(workflow)]
    named = {
        word
        for command in commands
        for words in re.findall(r"make(?: --silent)?((?: [a-z][a-z-]*)+)", command)
        for word in words.split()
    }
    assert named >= {"images", "sbom", "push", "version", "notes"}
    assert named <= set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))


@pytest.mark.parametrize("name", WORKFLOWS)
def test_permissions_are_minimal_and_actions_pinned(name: str) -> None:
    workflow = WORKFLOWS[name]
    assert workflow["permissions"] == {}
    for job in workflow["jobs"].values():
        writes = {scope for scope, access in job["permissions"].items() if access == "write"}
        assert writes <= ({"contents", "packages"} if name == "release" else set())
    for action in (step["uses"] for step in find_steps(name) if "uses" in step):
        assert re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40}", action)


def test_called_workflows_do_not_share_their_callers_concurrency_group() -> None:
    called = [workflow for workflow in WORKFLOWS.values() if "workflow_call" in workflow[True]]  # YAML reads on as true
    assert called
    for workflow in called:
        assert "github.workflow" not in workflow["concurrency"]["group"]  # it is the caller's name: a deadlock


@pytest.mark.parametrize("name", WORKFLOWS)
def test_commands_are_valid_shell(name: str) -> None:
    commands = [re.sub(r"\$\{\{.*?\}\}", "x", step["run"]) for step in find_steps(name) if "run" in step]
    assert commands
    for command in commands:
        subprocess.run(["bash", "-n"], input=command, text=True, check=True)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_prints_version_and_release_notes() -> None:
    def make(target: str) -> str:
        command = ["make", "--silent", "--no-print-directory", "--directory", str(ROOT), target]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert make("version").strip() == __version__
    changelog = (ROOT / "CHANGELOG.md").read_text()
    section = changelog.partition(f"\n## [{__version__}]")[2].partition("\n")[2].partition("\n## [")[0]
    assert section.strip()
    assert make("notes").strip() == section.strip()
