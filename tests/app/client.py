import asyncio
import contextlib
import inspect
from collections.abc import Callable
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.app.colours import PHOTO_PNG


class Client(httpx.AsyncClient):
    """An HTTP client that also reads the app's metrics."""

    async def detect(self, data: bytes = PHOTO_PNG, **query: Any) -> httpx.Response:
        return await self.post("/detect", content=data, params=query)

    async def sample(self, name: str, /, **labels: str) -> float:
        """Returns the value of the first matching sample; 0 if there is none."""
        text = (await self.get("/metrics")).text
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    return sample.value
        return 0.0

    async def until(self, name: str, value: float, /, **labels: str) -> None:
        """Polls until a metric has this value."""

        async def has_value() -> bool:
            return await self.sample(name, **labels) == value

        await until(has_value)

    async def until_status(self, path: str, status: int) -> None:
        """Polls `path`, each time on a new connection, until the response has `status`."""

        async def has_status() -> bool:
            return (await self.get(path, headers={"connection": "close"})).status_code == status

        await until(has_status)


async def until(condition: Callable[[], object]) -> None:
    """Polls until other threads or tasks make `condition()`, awaited if need be, true."""
    async with asyncio.timeout(30):
        while True:
            holds = condition()
            if await holds if inspect.isawaitable(holds) else holds:
                return
            await asyncio.sleep(0.005)


def check_problem(response: httpx.Response, status: int, reason: str, words: str = "") -> None:
    """Asserts that the response is a problem document with this status and reason, and these words in its detail."""
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert set(problem) == {"type", "title", "status", "detail", "request_id"}
    assert problem["request_id"] == response.headers["x-request-id"]
    assert (response.status_code, problem["status"], problem["type"]) == (status, status, f"/docs#{reason}")
    assert words in problem["detail"]


Serve = Callable[..., contextlib.AbstractAsyncContextManager[Client]]
