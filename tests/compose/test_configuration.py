"""The files for containers agree with the code and with each other."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.bench.local_server import read_samples, run_server
from app.settings import Settings
from tests.compose.files import DOCKER, ROOT

COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
VARIABLES = dict(re.findall(r"\$\{([A-Z_]+):-([^}]*)\}", (ROOT / "docker-compose.yml").read_text()))
DOCKERFILE = (DOCKER / "serve.Dockerfile").read_text()
OURS = ("server", "server-gpu", "train", "train-gpu")


def read_environment_file() -> dict[str, tuple[str, str]]:
    """Returns the variables of .env, each with the comment above it and its value."""
    variables: dict[str, tuple[str, str]] = {}
    for block in (ROOT / ".env").read_text().split("\n\n"):
        comment = " ".join(re.findall(r"^# (.+)$", block, re.MULTILINE))
        for name, value in re.findall(r"^#?([A-Z_]+)=(.*)$", block, re.MULTILINE):
            assert name not in variables
            variables[name] = comment, value
    return variables


def test_each_setting_is_in_the_environment_file_with_its_default_and_description() -> None:
    expected = {}
    for name, field in Settings.model_fields.items():
        variable = f"CENTERNET_{name.upper()}"
        if variable not in SERVICES["server"]["environment"]:
            has_default = field.default_factory is None and field.default not in (None, ())
            default = str(field.default) if has_default else ""
            expected[variable] = (field.description, default.lower() if field.annotation is bool else default)
    shown = {name: each for name, each in read_environment_file().items() if name not in VARIABLES}
    assert shown.pop("COMPOSE_PROFILES")[1] == "cpu"
    assert shown == expected


def test_each_variable_of_compose_is_in_the_environment_file_with_its_default() -> None:
    shown = {name: value for name, (_, value) in read_environment_file().items()}
    assert {name: shown.get(name) for name in VARIABLES} == VARIABLES
    assert all(comment for comment, _ in read_environment_file().values())


def test_environment_file_sets_only_the_profile() -> None:
    lines = (ROOT / ".env").read_text().splitlines()
    assert [line for line in lines if line and not line.startswith("#")] == ["COMPOSE_PROFILES=cpu"]


def test_profiles_choose_one_server() -> None:
    assert {name: SERVICES[name]["profiles"] for name in OURS} == {
        "server": ["cpu"],
        "server-gpu": ["gpu"],
        "train": ["train"],
        "train-gpu": ["train-gpu"],
    }
    for name in ("server", "server-gpu"):
        assert SERVICES[name]["networks"]["default"]["aliases"] == ["server"]  # the host that Prometheus scrapes
    prometheus = yaml.safe_load((DOCKER / "prometheus/prometheus.yml").read_text())
    [job] = prometheus["scrape_configs"]
    port = SERVICES["server"]["environment"]["CENTERNET_METRICS_PORT"]
    assert job["static_configs"] == [{"targets": [f"server:{port}"]}]


@pytest.mark.parametrize("name", ["server", "server-gpu"])
def test_stop_timeout_covers_every_request(name: str) -> None:
    assert SERVICES[name]["environment"]["CENTERNET_STOP_TIMEOUT_SECONDS"].startswith(
        "${CENTERNET_STOP_TIMEOUT_SECONDS"
    )
    stop = float(VARIABLES["CENTERNET_STOP_TIMEOUT_SECONDS"])
    assert stop >= Settings.model_fields["timeout_seconds"].default
    assert SERVICES[name]["stop_grace_period"] == "1m" and stop < 60


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_every_container_is_hardened(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["logging"]["options"] == {"max-size": "10m", "max-file": "3"}
    assert "mem_limit" in service and "pids_limit" in service
    assert service["restart"] == ("no" if name.startswith("train") else "unless-stopped")


def test_images_run_without_a_shell_as_an_unprivileged_user() -> None:
    for file in DOCKER.glob("*.Dockerfile"):
        text = file.read_text()
        stages = re.split(r"^FROM ", text, flags=re.MULTILINE)[1:]
        bases = {stage.split()[0] for stage in stages} - {"runtime"}
        assert bases == {"python:3.13-slim-trixie"}
        assert re.search(r'^LABEL .*?base.name="python:3.13-slim-trixie"', text, re.MULTILINE | re.DOTALL)
        assert re.findall(r"^ENTRYPOINT .*", text, re.MULTILINE)[0].startswith('ENTRYPOINT ["/opt/centernet/bin/')
        assert re.findall(r"^CMD .*", text, re.MULTILINE) == []
        for stage in stages:
            if not stage.split("\n")[0].endswith(("package", "runtime")):
                assert "\nUSER 10001:10001\n" in stage


def test_healthcheck_and_benchmark_ignore_proxies(model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [command] = re.findall(r"^HEALTHCHECK .*? CMD (\[.*?\])$", DOCKERFILE, re.MULTILINE | re.DOTALL)
    python, *arguments = json.loads(command.replace("\\\n", ""))
    assert python == "/opt/centernet/bin/python"
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")  # nothing listens there
    monkeypatch.setenv("no_proxy", "")
    with run_server(
        [f"--model={model_path}", "--provider=cpu", "--threads=1", "--instances=1", "--max-batch=1"]
    ) as port:
        assert read_samples(port)
        monkeypatch.setenv("CENTERNET_PORT", str(port))
        subprocess.run([sys.executable, *arguments], check=True)


def test_image_requirements_match_the_constraints_and_have_hashes() -> None:
    pins = {
        name.lower().replace("_", "-"): version for name, version in read_pins((ROOT / "constraints.txt").read_text())
    }
    for file in (DOCKER / "requirements").glob("*.txt"):
        text = file.read_text()
        found = read_pins(text)
        assert found
        for name, version in found:
            assert pins.get(name, version) == version, f"{file.name} is behind constraints.txt: make requirements"
        for line in re.split(r"\n(?=\S)", text):
            assert line.startswith("#") or "--hash=sha256:" in line
        assert "://" not in text


def read_pins(text: str) -> list[tuple[str, str]]:
    return re.findall(r"^([A-Za-z0-9_.-]+)==([^\s;\\]+)", text, re.MULTILINE)


@pytest.mark.parametrize("extras", [("serve.txt", {"otel"}), ("cuda.txt", {"otel", "cuda"}), ("train.txt", {"train"})])
def test_image_requirements_include_all_dependencies(extras: tuple[str, set[str]]) -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [
        *project["dependencies"],
        *(each for extra in extras[1] for each in project["optional-dependencies"][extra]),
    ]
    pinned = {name for name, _ in read_pins((DOCKER / "requirements" / extras[0]).read_text())}
    for requirement in needed:
        name = re.split(r"[^A-Za-z0-9_.-]", requirement)[0].lower().replace("_", "-")
        assert name in pinned, f"{extras[0]} lacks {name}: make requirements"


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian's prometheus)")
@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "config", "docker/prometheus/prometheus.yml"),
        ("check", "rules", "docker/prometheus/recording.yml", "docker/prometheus/alerts.yml"),
        ("test", "rules", "tests/compose/rules.test.yml"),
    ],
)
def test_promtool_accepts_the_configuration_and_rules(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(["promtool", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_is_tested_and_documented() -> None:
    [group] = yaml.safe_load((DOCKER / "prometheus/alerts.yml").read_text())["groups"]
    alerts = {rule["alert"] for rule in group["rules"]}
    tests = yaml.safe_load((ROOT / "tests/compose/rules.test.yml").read_text())["tests"]
    fired = {each["alertname"] for test in tests for each in test.get("alert_rule_test", []) if each["exp_alerts"]}
    assert fired == alerts
    assert set(re.findall(r"^\| `(CenterNet\w+)`", (ROOT / "docs/deployment.md").read_text(), re.MULTILINE)) == alerts


@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="docker-compose is not installed")
def test_compose_file_is_valid() -> None:
    done = subprocess.run(["docker-compose", "config", "--quiet"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
