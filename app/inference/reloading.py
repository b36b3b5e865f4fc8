"""Reloads the models on SIGHUP and, if `watch` is set, when their files change."""

import asyncio
import contextlib
import logging
import signal
import threading
from collections.abc import AsyncIterator

from app.inference.models import Models
from app.settings import Settings

_WATCH_SECONDS = 1.0

logger = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def reloading(models: Models, settings: Settings) -> AsyncIterator[None]:
    """Reloads `models` on each signal or file change while its block runs."""
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()

    def start_reload() -> None:
        task = asyncio.create_task(models.reload())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    if settings.watch:
        tasks.add(asyncio.create_task(_watch(models)))
    handles_signals = hasattr(signal, "SIGHUP") and threading.current_thread() is threading.main_thread()
    if handles_signals:
        loop.add_signal_handler(signal.SIGHUP, start_reload)
    try:
        yield
    finally:
        if handles_signals:
            loop.remove_signal_handler(signal.SIGHUP)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _watch(models: Models) -> None:
    """Reloads `models` when their files have changed, and have then not changed for a second: they may be incomplete.

    Polls, because notifications miss changes on network volumes, of symbolic links and of whole folders.
    """
    previous = None
    while True:
        await asyncio.sleep(_WATCH_SECONDS)
        try:
            signatures = await asyncio.to_thread(models.read_signatures)
            if signatures == previous and not models.reflect(signatures):
                await models.reload()
            previous = signatures
        except OSError as error:  # of a network volume it may pass
            logger.error("the model files cannot be listed: %s", error)
