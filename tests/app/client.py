import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.app.colours import PHOTO_PNG


class Client(httpx.AsyncClient):
    """Speaks to an app and asks its metrics."""

    async def detect(self, data: bytes = PHOTO_PNG, **query: Any) -> httpx.Response:
        return await self.post("/detect", content=data, params=query)

    async def sample(self, name: str, /, **labels: str) -> float:
        text = (await self.get("/metrics")).text
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    return sample.value
        return 0.0

    async def until(self, name: str, value: float) -> None:
        """Returns as soon as a gauge has this value."""
        async with asyncio.timeout(30):
            while await self.sample(name) != value:
                await asyncio.sleep(0.005)


Serve = Callable[..., contextlib.AbstractAsyncContextManager[Client]]
