import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.server import create_app
from app.settings import Settings
from model.detector import Detector
from tests.app.client import Client, Serve
from tests.app.colours import save_model


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "colours.onnx")


@pytest.fixture
def make_settings(model_path: Path) -> Callable[..., Settings]:
    def make(**changes: Any) -> Settings:
        values: dict[str, Any] = {"model": model_path, "provider": "cpu", "threads": 1, "decode_threads": 2}
        arrangement = {"instances": 1, "max_batch": 8}  # fixed, so that nothing is measured at start-up
        return Settings(**values | arrangement | changes)

    return make


@pytest.fixture
def serve(make_settings: Callable[..., Settings], model_path: Path) -> Serve:
    """Runs an app with a given detector or the model of colours: `async with serve(max_batch=2) as client`."""

    @contextlib.asynccontextmanager
    async def run(detector: Detector | None = None, **changes: Any) -> AsyncIterator[Client]:
        app = create_app(make_settings(**changes), detector or Detector(model_path, "cpu", 1))
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with app.router.lifespan_context(app), Client(transport=transport, base_url="http://server") as client:
            yield client

    return run


@pytest.fixture
async def client(serve: Serve) -> AsyncIterator[Client]:
    async with serve() as client:
        yield client
