import asyncio
import io
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from app.client import AsyncClient, Client, NoAnswer, Refused
from app.schemas import Answer, Problem
from app.settings import Settings
from model.detector import Detections, Detector
from model.draw import draw_detections
from tests.app.client import until
from tests.app.colours import BLUE_FOUND, GREEN_FOUND, PHOTO, PHOTO_PNG, RED_FOUND, SCORES, describe, encode, save_model
from tests.app.detectors import HeldDetector
from tests.app.listener import listen

pytestmark = pytest.mark.anyio
Make = Callable[..., Settings]
Ask = Callable[..., Awaitable[Any]]


@pytest.fixture
async def url(make_settings: Make, model_path: Path) -> AsyncIterator[str]:
    async with listen(make_settings(), Detector(model_path, "cpu", 1)) as client:
        yield str(client.base_url)


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """Calls a method of either client, made with `options`: `await ask(url, "detect", image, threshold=0)`."""

    async def ask(url: str, method: str, *arguments: Any, options: Any = None, **wanted: Any) -> Any:
        if request.param == "async":
            async with AsyncClient(url, **options or {}) as client:
                return await getattr(client, method)(*arguments, **wanted)

        def call() -> Any:
            with Client(url, **options or {}) as client:
                return getattr(client, method)(*arguments, **wanted)

        return await asyncio.to_thread(call)

    return ask


def list_detections(answer: Answer) -> list[Any]:
    assert isinstance(answer, Answer)
    return [each.model_dump(exclude_unset=True) for each in answer.detections]


async def test_bytes_a_file_and_pixels_give_the_same_detections(ask: Ask, url: str, tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(PHOTO_PNG)
    for image in (PHOTO_PNG, path, PHOTO):
        answer = await ask(url, "detect", image)
        assert list_detections(answer) == [RED_FOUND, GREEN_FOUND]
        assert (answer.model, answer.image.width, answer.image.height) == ("colours", 192, 128)


async def test_query_parameters_are_sent(ask: Ask, url: str) -> None:
    assert list_detections(await ask(url, "detect", PHOTO_PNG, threshold=0)) == [RED_FOUND, GREEN_FOUND, BLUE_FOUND]
    assert list_detections(await ask(url, "detect", PHOTO_PNG, threshold=0, limit=2)) == [RED_FOUND, GREEN_FOUND]
    for labels in (["blue", "green"], "blue,green"):
        assert list_detections(await ask(url, "detect", PHOTO_PNG, threshold=0.1, labels=labels)) == [
            GREEN_FOUND,
            BLUE_FOUND,
        ]
    nothing: dict[str, None] = {"threshold": None, "limit": None, "labels": None, "model": None}
    assert list_detections(await ask(url, "detect", PHOTO_PNG, **nothing)) == [RED_FOUND, GREEN_FOUND]
    with pytest.raises(Refused, match="there is no model 'other'; there is 'colours'"):
        await ask(url, "detect", PHOTO_PNG, model="other")


async def test_labels_with_commas_and_spaces_are_selected(ask: Ask, make_settings: Make, tmp_path: Path) -> None:
    facts = describe(labels=("red, dark", " green ", "blue")).to_properties()
    detector = Detector(save_model(tmp_path / "model.onnx", facts), "cpu", 1)
    async with listen(make_settings(), detector) as client:
        for labels, names in {("red, dark", " green "): ["red, dark", " green "], "red, dark": ["red, dark"]}.items():
            answer = await ask(str(client.base_url), "detect", PHOTO_PNG, threshold=0, labels=labels)
            assert [each.label for each in answer.detections] == names
        with pytest.raises(Refused, match="unknown: ''"):
            await ask(str(client.base_url), "detect", PHOTO_PNG, labels=[])


async def test_batch_returns_answers_and_problems_in_order(ask: Ask, url: str) -> None:
    first, second, third = await ask(url, "detect_batch", [PHOTO, b"hello", PHOTO_PNG], limit=1)
    assert list_detections(first) == list_detections(third) == [RED_FOUND]
    assert isinstance(second, Problem)
    assert (second.status, second.type) == (415, "/docs#unknown-format")


async def test_draw_returns_the_image_with_its_boxes(ask: Ask, url: str) -> None:
    found = Detections(np.array([[32, 16, 96, 64]], np.float32), np.array([0.9], np.float32), np.array([0]))
    png = Image.open(io.BytesIO(await ask(url, "draw", PHOTO, "png", labels="red")))
    assert (np.asarray(png) == draw_detections(PHOTO, found, list(SCORES))).all()
    assert Image.open(io.BytesIO(await ask(url, "draw", PHOTO_PNG))).format == "JPEG"


async def test_models_are_described(ask: Ask, url: str) -> None:
    [model] = await ask(url, "models")
    assert (model.name, model.input.width, [label.label for label in model.labels]) == ("colours", 96, list(SCORES))


async def test_server_is_ready_once_it_is_warmed_up(ask: Ask, make_settings: Make, model_path: Path) -> None:
    detector = HeldDetector(model_path)
    detector.gate.clear()
    async with listen(make_settings(), detector) as client:
        assert await ask(str(client.base_url), "ready") is False
        detector.gate.set()
        await until(lambda: ask(str(client.base_url), "ready"))


async def test_readiness_that_is_refused_is_raised(ask: Ask) -> None:
    server = ScriptedServer({"status_code": 502, "text": "no upstream"})
    with pytest.raises(Refused, match="no upstream"):
        await ask("http://server", "ready", options=server.options())


async def test_refused_request_raises_the_servers_problem(ask: Ask, url: str) -> None:
    with pytest.raises(Refused, match="not an image of a known format: these bytes are no image") as caught:
        await ask(url, "detect", b"hello")
    assert (caught.value.reason, caught.value.problem.status) == ("unknown-format", 415)
    with pytest.raises(Refused, match="unknown: 'pink'; the model knows: red, green, blue"):
        await ask(url, "detect", PHOTO_PNG, labels=["pink"])


async def test_overload_is_raised_when_no_retries_are_left(ask: Ask, make_settings: Make, model_path: Path) -> None:
    detector = HeldDetector(model_path)
    async with listen(make_settings(max_queue=1), detector) as client:
        await client.detect()
        detector.gate.clear()
        held = asyncio.create_task(client.detect())
        await client.until("centernet_requests_in_flight", 1)
        with pytest.raises(Refused) as caught:
            await ask(str(client.base_url), "detect", PHOTO_PNG, options={"retries": 0})
        assert caught.value.reason == "overloaded"
        detector.gate.set()
        assert (await held).status_code == 200


class ScriptedServer:
    """Returns the given responses in turn, and the last one repeatedly; records the requests."""

    def __init__(self, *responses: dict[str, Any]) -> None:
        self.responses = list(responses)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        return httpx.Response(**self.responses.pop(0) if len(self.responses) > 1 else self.responses[0])

    def options(self, **more: Any) -> dict[str, Any]:
        return {"transport": httpx.MockTransport(self), **more}


def busy(after: str | None = "0", status: int = 503) -> dict[str, Any]:
    return {"status_code": status, "headers": {} if after is None else {"retry-after": after}, "text": "busy"}


EMPTY = {
    "model": "m",
    "image": {"width": 1, "height": 1},
    "detections": [],
    "timings_ms": {"decode": 1, "queue": 1, "inference": 1, "total": 1},
}


async def test_overloaded_server_is_retried(ask: Ask) -> None:
    server = ScriptedServer(busy(), busy(), {"status_code": 200, "json": EMPTY})
    assert list_detections(await ask("http://server", "detect", PHOTO_PNG, options=server.options(retries=2))) == []
    assert [request.content for request in server.requests] == [PHOTO_PNG] * 3


@pytest.mark.parametrize(
    ("response", "requests"),
    [
        (busy(), 3),
        (busy(after=None), 1),
        (busy(after="61"), 1),
        (busy(after="Wed, 21 Oct 2015 07:28:00 GMT"), 1),
        (busy(status=500), 1),
        (busy(status=502), 1),
        (busy(status=429), 3),
    ],
)
async def test_retries_require_a_retryable_status_and_a_short_retry_after(
    ask: Ask, response: dict[str, Any], requests: int
) -> None:
    server = ScriptedServer(response)
    with pytest.raises(Refused) as caught:
        await ask("http://server", "detect", PHOTO_PNG, options=server.options(retries=2))
    assert len(server.requests) == requests
    assert (caught.value.problem.status, caught.value.problem.detail) == (response["status_code"], "busy")


async def test_api_key_is_sent_with_every_request(ask: Ask) -> None:
    server = ScriptedServer({"status_code": 200, "json": {"models": [], "refused": []}})
    await ask("http://server", "models", options=server.options(api_key="secret"))
    await ask("http://server", "models", options=server.options())
    assert [request.headers.get("x-api-key") for request in server.requests] == ["secret", None]


async def test_unexpected_response_is_reported_with_its_address(ask: Ask) -> None:
    server = ScriptedServer({"status_code": 200, "text": "<html>welcome</html>"})
    for method, arguments in (("detect", [PHOTO_PNG]), ("models", [])):
        with pytest.raises(NoAnswer, match="the response of http://server/"):
            await ask("http://server", method, *arguments, options=server.options())


async def test_refused_connection_is_reported_with_its_address(ask: Ask) -> None:
    closed = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = closed.sockets[0].getsockname()[1]
    closed.close()
    await closed.wait_closed()
    with pytest.raises(NoAnswer, match=f"http://127.0.0.1:{port}"):
        await ask(f"http://127.0.0.1:{port}", "ready")


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "localhost", "ftp://server", "http://", "http://server:port", ""])
async def test_invalid_address_is_reported(ask: Ask, url: str) -> None:
    with pytest.raises(NoAnswer, match="is not a valid address"):
        await ask(url, "ready")


async def test_silent_server_times_out(ask: Ask) -> None:
    async def keep_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(keep_silent, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(NoAnswer, match=r"no response from .*(timed out|ReadTimeout)"):
            await ask(f"http://127.0.0.1:{port}", "detect", PHOTO_PNG, options={"timeout_seconds": 0.01})


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 4), (0, 4, 3)])
async def test_array_that_is_not_an_image_is_not_sent(ask: Ask, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="height, width, 3"):
        await ask("http://server", "detect", np.zeros(shape, np.uint8))
    with pytest.raises(TypeError, match="its Path, or an array of pixels, not str"):
        await ask("http://server", "detect", "photo.jpg")
    with pytest.raises(ValueError, match="uint8"):
        await ask("http://server", "detect", np.zeros((4, 4, 3), np.float32))


async def test_missing_file_raises_file_not_found_error(ask: Ask, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await ask("http://server", "detect", tmp_path / "missing.jpg")


def test_import_without_httpx_names_the_extra_to_install() -> None:
    script = "import sys; sys.modules['httpx'] = None; import app.client"
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "pip install 'centernet-service[client]'" in finished.stderr.splitlines()[-1]


async def test_readme_example_works(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    [example] = re.findall(r"^```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    (tmp_path / "photo.jpg").write_bytes(encode(PHOTO, "JPEG", subsampling=0, quality=95))
    monkeypatch.chdir(tmp_path)
    assert "http://127.0.0.1:8000" in example
    script = example.replace("http://127.0.0.1:8000", url)
    finished = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", script], capture_output=True, text=True)
    assert finished.stderr == ""
    assert finished.stdout.startswith("red 0.9")
