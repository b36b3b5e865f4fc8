import asyncio
import contextlib
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from deepstack.core import DeepstackException, DeepstackObject
from httpx import Response

from app.access.keys import Unauthorized, check_key
from app.access.rates import RateLimit, RateLimited
from app.server import create_app
from app.settings import Settings, read_settings
from model.detector import Detector
from tests.app.client import Client, Serve
from tests.app.colours import PHOTO_PNG
from tests.app.detectors import CrashingDetector
from tests.app.listener import listen

pytestmark = pytest.mark.anyio
Make = Callable[..., Settings]

OPEN = {"/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready"}
FIRST, SECOND = {"authorization": "Bearer first"}, {"x-api-key": "second"}


def check_refused(response: Response, words: str) -> None:
    assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
    assert words in response.text


async def test_every_route_but_health_requires_a_key(serve: Serve) -> None:
    async with serve(api_keys="first, second") as client:
        paths = (await client.get("/openapi.json")).json()["paths"]
        assert set(paths) > OPEN | {"/detect", "/metrics", "/models/reload", "/v2/models/{model}/infer"}
        for method, path in [(method, path) for path, methods in paths.items() for method in methods]:
            response = await client.request(method, path)
            if path in OPEN:
                assert response.status_code in (200, 503), path
            else:
                check_refused(response, "send a key")


@pytest.mark.parametrize("headers", [FIRST, SECOND, {"authorization": "bearer second"}])
async def test_each_key_is_accepted(serve: Serve, headers: dict[str, str]) -> None:
    async with serve(api_keys="first,second") as client:
        assert (await client.post("/detect", content=PHOTO_PNG, headers=headers)).status_code == 200
        assert (await client.get("/metrics", headers=headers)).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer third"},
        {"x-api-key": "firs"},
        {"x-api-key": "Ünknown"},
        {"authorization": "Bearer third", "x-api-key": "first"},
        {"authorization": "Bearer " + hashlib.sha256(b"first").hexdigest()},
    ],
)
async def test_unknown_keys_are_refused(serve: Serve, headers: dict[str, str]) -> None:
    async with serve(api_keys="first,second") as client:
        encoded = {name: value.encode() for name, value in headers.items()}
        response = await client.post("/detect", content=PHOTO_PNG, headers=encoded, params={"limit": "0"})
        check_refused(response, "the key is not known")
        assert response.json()["type"] == "/docs#unauthorized"
        client.headers.update(FIRST)
        assert await client.sample("centernet_rejections_total", reason="unauthorized") == 1


async def test_without_configured_keys_every_request_is_accepted(serve: Serve) -> None:
    async with serve() as client:
        assert (await client.post("/detect", content=PHOTO_PNG, headers=FIRST)).status_code == 200
        assert "securitySchemes" not in (await client.get("/openapi.json")).json()["components"]


async def test_openapi_declares_which_routes_require_a_key(serve: Serve) -> None:
    async with serve(api_keys="first") as client:
        assert (await client.get("/docs")).status_code == 200
        description = (await client.get("/openapi.json")).json()
        assert set(description["components"]["securitySchemes"]) == {"HTTPBearer", "APIKeyHeader"}
        for path, routes in description["paths"].items():
            for route in routes.values():
                assert bool(route.get("security")) == (path not in OPEN), path


async def test_deepstack_clients_send_the_key_as_a_form_field(make_settings: Make, model_path: Path) -> None:
    async with listen(make_settings(api_keys="first"), Detector(model_path, "cpu", 1)) as client:
        port = client.base_url.port
        authorized = DeepstackObject("127.0.0.1", port, api_key="first")
        assert [each["label"] for each in await asyncio.to_thread(authorized.detect, PHOTO_PNG)] == ["red", "green"]
        unauthorized = DeepstackObject("127.0.0.1", port, api_key="second")
        with pytest.raises(DeepstackException, match="401"):
            await asyncio.to_thread(unauthorized.detect, PHOTO_PNG)


@pytest.mark.parametrize("route", ["detection", "custom/colours", "custom/list"])
async def test_deepstack_routes_take_the_key_from_form_or_header(serve: Serve, route: str) -> None:
    async def send(headers: dict[str, str] | None = None, **fields: str) -> Response:
        parts: dict[str, Any] = {"image": PHOTO_PNG} | {name: (None, value) for name, value in fields.items()}
        return await client.post(f"/v1/vision/{route}", files=parts, headers=headers)

    async with serve(api_keys="first,second") as client:
        assert (await send(api_key="second")).status_code == 200
        assert (await send(FIRST)).status_code == 200
        refused = await send(api_key="third")
        check_refused(refused, "the key is not known")
        assert refused.json()["success"] is False
        check_refused(await send({"x-api-key": "third"}, api_key="first"), "the key is not known")


async def test_other_routes_ignore_a_key_in_a_form(serve: Serve) -> None:
    async with serve(api_keys="first") as client:
        check_refused(await client.post("/detect", files={"image": PHOTO_PNG}, data={"api_key": "first"}), "send a key")


async def test_requests_per_key_are_rate_limited(serve: Serve) -> None:
    async with serve(api_keys="first,second", key_requests_per_minute=2) as client:
        for _ in range(2):
            assert (await client.post("/detect", content=PHOTO_PNG, headers=FIRST)).status_code == 200
        refused = await client.post("/detect", content=PHOTO_PNG, headers=FIRST)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "30")
        assert refused.json()["type"] == "/docs#rate-limited"
        assert "2 requests a minute" in refused.json()["detail"]
        form = await client.post("/v1/vision/detection", files={"image": PHOTO_PNG}, data={"api_key": "first"})
        assert (form.status_code, form.json()["success"]) == (429, False)
        assert (await client.post("/detect", content=PHOTO_PNG, headers=SECOND)).status_code == 200


@pytest.mark.parametrize(("per_minute", "seconds"), [(1, 60), (7, 9), (60, 1), (1000, 1)])
def test_wait_of_a_rate_limited_client_is_rounded_up(per_minute: int, seconds: int) -> None:
    assert RateLimited(per_minute).retry_after_seconds == seconds


async def test_requests_per_address_are_rate_limited(make_settings: Make, model_path: Path) -> None:
    app = create_app(make_settings(address_requests_per_minute=2), Detector(model_path, "cpu", 1))

    async def ask(address: str, path: str = "/models") -> int:
        transport = httpx.ASGITransport(app, client=(address, 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return (await client.get(path)).status_code

    assert [await ask("10.0.0.1") for _ in range(3)] == [200, 200, 429]
    assert await ask("::ffff:10.0.0.1") == 429
    assert [await ask(f"2001:db8:0:1::{host}") for host in (1, 2, 3)] == [200, 200, 429]
    assert await ask("10.0.0.2") == await ask("2001:db8:0:2::1") == await ask("camera") == 200
    assert [await ask("10.0.0.1", "/health/live") for _ in range(3)] == [200] * 3


async def test_unauthorized_requests_count_towards_the_limit_of_their_address(serve: Serve) -> None:
    async with serve(api_keys="first", address_requests_per_minute=1) as client:
        check_refused(await client.get("/models"), "send a key")
        assert (await client.get("/models", headers=FIRST)).status_code == 429


async def test_rate_limited_client_is_accepted_after_waiting(anyio_backend: str) -> None:
    limit = RateLimit(6000)
    async with asyncio.timeout(30):
        with pytest.raises(RateLimited):
            while True:
                await limit.count("busy")
        while True:
            with contextlib.suppress(RateLimited):
                await limit.count("busy")
                break
            await asyncio.sleep(0)


async def test_rate_limit_remembers_a_limited_number_of_clients(anyio_backend: str) -> None:
    limit = RateLimit(1)
    for client in range(20_001):
        await limit.count(client)
    with pytest.raises(RateLimited):
        await limit.count(20_000)
    await limit.count(0)  # forgotten: only the 10,000 clients seen last are remembered


async def test_configured_cors_origins_are_allowed(serve: Serve) -> None:
    async with serve(cors_origins="https://one.example,https://two.example:8443", api_keys="first") as client:
        for origin, allowed in [("https://two.example:8443", True), ("https://two.example", False)]:
            preflight = await client.options(
                "/detect",
                headers={
                    "origin": origin,
                    "access-control-request-method": "POST",
                    "access-control-request-headers": "authorization,x-request-id",
                },
            )
            assert preflight.status_code == (200 if allowed else 400)
            refused = await client.post("/detect", content=PHOTO_PNG, headers={"origin": origin})
            assert refused.status_code == 401
            for response in (preflight, refused):
                assert response.headers.get("access-control-allow-origin") == (origin if allowed else None)
            assert refused.headers["access-control-expose-headers"] == "*"


async def test_internal_errors_have_cors_headers(serve: Serve, model_path: Path) -> None:
    async with serve(CrashingDetector(model_path, "cpu", 1), cors_origins="*") as client:
        response = await client.post("/detect", content=PHOTO_PNG, headers={"origin": "https://any.example"})
        assert (response.status_code, response.headers["access-control-allow-origin"]) == (500, "*")


async def test_cors_is_disabled_by_default(client: Client) -> None:
    response = await client.get("/models", headers={"origin": "https://any.example"})
    assert "access-control-allow-origin" not in response.headers


def test_keys_are_stored_only_as_hashes(model_path: Path, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("key-3\n  key-4  \n")
    settings = read_settings(["--api-keys=key-1,key-2", f"--api-keys-file={tmp_path}/keys", f"--model={model_path}"])
    known = settings.find_keys()
    for key in ("key-1", "key-2", "key-3", "key-4"):
        check_key(key, known)
        assert key not in repr(settings)
    for key in ("", "key-5", None, "key-1,key-2"):
        with pytest.raises(Unauthorized):
            check_key(key, known)


async def test_admin_routes_can_have_a_separate_port(make_settings: Make, model_path: Path) -> None:
    app = create_app(make_settings(metrics_port=0, api_keys="first"), Detector(model_path, "cpu", 1))
    async with app.router.lifespan_context(app):
        transports = httpx.ASGITransport(app), httpx.ASGITransport(app.state.admin)
        async with Client(transport=transports[0], base_url="http://server", headers=FIRST) as client:
            assert (await client.post("/detect", content=PHOTO_PNG)).status_code == 200
            assert (await client.get("/metrics")).status_code == 404
            assert (await client.post("/models/reload")).status_code == 405
        async with Client(transport=transports[1], base_url="http://admin") as operator:
            assert await operator.sample("centernet_detections_total", label="red") == 1
            reloaded = await operator.post("/models/reload")
            assert [model["name"] for model in reloaded.json()["models"]] == ["colours"]
            assert (await operator.get("/health/live")).json() == {"status": "live"}
            assert (await operator.get("/health/ready")).json() == {"status": "ready"}
            refused = await operator.get("/detect")
            assert (refused.status_code, refused.json()["request_id"]) == (404, refused.headers["x-request-id"])
