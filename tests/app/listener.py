import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator

import uvicorn

from app.connections.listener import configure
from app.server import create_app
from app.settings import Settings
from model.detector import Detector
from tests.app.client import Client, until


@contextlib.asynccontextmanager
async def listen(settings: Settings, detector: Detector) -> AsyncIterator[Client]:
    """Serves an app on a local socket; gives a client of it."""
    server = uvicorn.Server(configure(create_app(settings, detector), settings, "127.0.0.1", 0))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        task = asyncio.create_task(server.serve(sockets=[listener]))
        await until(lambda: server.started)
        async with Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}") as client:
            yield client
        server.should_exit = True
        await task


@contextlib.contextmanager
def listen_in_thread(settings: Settings, detector: Detector) -> Iterator[str]:
    """Serves an app in a thread, for tests that are not asynchronous; gives its address."""
    server = uvicorn.Server(configure(create_app(settings, detector), settings, "127.0.0.1", 0))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join()
