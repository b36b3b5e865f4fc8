import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.settings import Settings
from tests.app.client import Serve

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()


def test_every_setting_is_explained_once() -> None:
    explained = re.findall(r"`(\w+)`", "\n".join(re.findall(r"^\| (`[^|]*) \|", README + OPERATIONS, re.MULTILINE)))
    assert sorted(name for name in explained if name in Settings.model_fields) == sorted(Settings.model_fields)


@pytest.mark.anyio
async def test_metrics_and_their_labels_are_documented(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "app.telemetry.metrics.read_memory_limit", lambda: 2**29
    )  # as in a container with a memory limit
    async with serve() as client:
        await client.detect()
        await client.detect(b"hello")
        metrics = (await client.get("/metrics")).text
    _, table = OPERATIONS.split("## Metrics")
    documented = {}
    for names, labels in re.findall(r"^\| (`[^|]+) \| ([^|]*) \|", table.replace("| |", "|  |"), re.MULTILINE):
        for name in re.findall(r"`(\w+)`", names):
            documented[name] = {label.strip() for label in labels.split(",") if label.strip()}
    exposed = {}
    for family in text_string_to_metric_families(metrics):
        name = family.name + ("_total" if family.type == "counter" else "")
        exposed[name] = set().union(*(sample.labels for sample in family.samples)) - {"le"}
    assert exposed.keys() == documented.keys()
    del exposed["python_info"]
    assert {name: documented[name] for name in exposed} == exposed
