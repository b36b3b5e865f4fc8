from pathlib import Path

import pytest

from app.telemetry.memory import read_memory_limit
from tests.app.client import Serve


@pytest.mark.parametrize(
    ("file", "text", "limit"),
    [
        ("memory.max", "536870912\n", 2**29),
        ("memory.max", "max\n", None),
        ("memory/memory.limit_in_bytes", "536870912\n", 2**29),
        ("memory/memory.limit_in_bytes", "9223372036854771712\n", None),
    ],
)
def test_limit_is_read_from_the_cgroup(tmp_path: Path, file: str, text: str, limit: int | None) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(text)
    assert read_memory_limit(tmp_path) == limit


def test_without_cgroups_there_is_no_limit(tmp_path: Path) -> None:
    assert read_memory_limit(tmp_path) is None


@pytest.mark.anyio
async def test_limit_is_a_metric_if_there_is_one(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.telemetry.metrics.read_memory_limit", lambda: 2**29)
    async with serve() as client:
        assert await client.sample("centernet_memory_limit_bytes") == 2**29
    monkeypatch.setattr("app.telemetry.metrics.read_memory_limit", lambda: None)
    async with serve() as client:
        assert "centernet_memory_limit_bytes" not in (await client.get("/metrics")).text
