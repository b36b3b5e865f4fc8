import asyncio
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.telemetry.logs import set_up_logging
from tests.app.client import Client, Serve
from tests.app.colours import PHOTO_PNG
from tests.app.detectors import CrashingDetector, HeldDetector

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def bare_logging(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Logging as in a new process."""
    root, uvicorn = logging.getLogger(), logging.getLogger("uvicorn.error")
    levels = root.level, uvicorn.level
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(logging.getLogger("httpx"), "disabled", True)
    yield
    root.setLevel(levels[0])
    uvicorn.setLevel(levels[1])


async def test_request_id_is_generated_or_taken_from_the_request(client: Client) -> None:
    made = [(await client.detect()).headers["x-request-id"] for _ in range(2)]
    assert len(set(made)) == 2
    assert all(re.fullmatch("[0-9a-f]{32}", each) for each in made)
    for path in ("/detect", "/health/live", "/nothing"):
        response = await client.get(path, headers={"x-request-id": "camera-7/42"})
        assert response.headers.get_list("x-request-id") == ["camera-7/42"]


@pytest.mark.parametrize("sent", [b"", b"a b", b"a\tb", b"\xc3\xa4", b"x" * 129])
async def test_invalid_request_id_is_replaced(client: Client, sent: bytes) -> None:
    response = await client.get("/health/live", headers={b"x-request-id": sent})
    assert re.fullmatch("[0-9a-f]{32}", response.headers["x-request-id"])


async def test_problems_have_the_request_id(client: Client) -> None:
    headers = {"x-request-id": "mine"}
    assert (await client.post("/detect", content=b"hello", headers=headers)).json()["request_id"] == "mine"
    files = [("images", ("a", PHOTO_PNG)), ("images", ("b", b"hello"))]
    results = (await client.post("/detect/batch", files=files, headers=headers)).json()["results"]
    assert [each.get("request_id") for each in results] == [None, "mine"]
    shaped = await client.post("/v1/vision/detection", files={"image": b"hello"}, headers=headers)
    assert shaped.headers["x-request-id"] == "mine"


async def test_plain_log_lines_have_the_request_id(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    await client.detect()  # the warm-up, which is logged, is over
    set_up_logging("info", "plain")
    await client.post("/detect?limit=1", content=b"hello", headers={"x-request-id": "mine"})
    await client.get("/made%0aup", headers={"x-request-id": "another"})
    logging.getLogger("app").info("about nobody's request")
    refused, unknown, other = capsys.readouterr().err.splitlines()
    assert " INFO app.errors [mine] POST /detect: 415 This is not an image" in refused
    assert " INFO app.errors [another] GET /made%0aup: 404 Not Found" in unknown
    assert other.endswith(" INFO app [-] about nobody's request")


@pytest.mark.parametrize(("level", "servers"), [("debug", "WARNING"), ("warning", "WARNING"), ("error", "ERROR")])
def test_web_server_logs_no_less_severe_than_the_level_and_warnings(level: str, servers: str) -> None:
    set_up_logging(level, "plain")
    assert logging.getLevelName(logging.getLogger("uvicorn.error").level) == servers


async def test_clients_cannot_inject_log_lines(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    await client.detect()  # the warm-up, which is logged, is over
    set_up_logging("info", "plain")
    await client.detect(labels="a\n2026-01-01 ERROR app [-] forged\x1b[2J")
    model = "/v2/models/colours/infer"
    await client.post(model, json={"inputs": [], "outputs": [{"name": "a\r\nforged\x7f"}]})
    lines = capsys.readouterr().err
    assert lines.count("\n") == 2
    assert "\\x0d\\x0aforged\\x7f" in lines
    assert set(lines) & set("\r\x1b\x7f") == set()


async def test_failure_is_logged_with_its_request_id(
    serve: Serve, model_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    set_up_logging("info", "json")
    async with serve(CrashingDetector(model_path, "cpu", 1)) as client:
        response = await client.post("/detect", content=PHOTO_PNG, headers={"x-request-id": "mine"})
        assert (response.status_code, response.headers["x-request-id"]) == (500, "mine")
        assert response.json()["request_id"] == "mine"
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    failure, refusal = [line for line in lines if line["request_id"] == "mine"]
    fields = {"method": "POST", "path": "/detect", "status": 500}
    assert fields.items() <= refusal.items()
    assert {"time", "level", "logger", "request_id", "message"} == set(refusal) - fields.keys()
    assert (failure["level"], failure["logger"]) == ("ERROR", "app.errors")
    assert failure["exception"].endswith("ZeroDivisionError: a secret")
    assert [line["request_id"] for line in lines if "warmed up" in line["message"]] == ["-"]


async def test_refusals_of_a_full_queue_are_logged_at_debug(
    serve: Serve, model_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    detector = HeldDetector(model_path)
    async with serve(detector, max_queue=1) as client:
        await client.detect()
        set_up_logging("debug", "plain")
        detector.gate.clear()
        held = asyncio.create_task(client.detect())
        await client.until("centernet_requests_in_flight", 1)
        assert (await client.post("/v1/vision/detection", files={"image": PHOTO_PNG})).status_code == 503
        detector.gate.set()
        await held
    [refused] = [line for line in capsys.readouterr().err.splitlines() if ": 503 " in line]
    assert " DEBUG app.errors [" in refused


@pytest.mark.parametrize("log_format", ["plain", "json"])
async def test_api_keys_are_not_logged(serve: Serve, capsys: pytest.CaptureFixture[str], log_format: str) -> None:
    set_up_logging("debug", log_format)  # type: ignore[arg-type]
    async with serve(api_keys="right-key") as client:
        for key in ("right-key", "wrong-key"):
            await client.post("/detect", content=PHOTO_PNG, headers={"authorization": f"Bearer {key}"})
            await client.post("/v1/vision/detection", files={"image": PHOTO_PNG}, data={"api_key": key})
    logged = capsys.readouterr().err
    assert "An API key is required" in logged
    assert "-key" not in logged
