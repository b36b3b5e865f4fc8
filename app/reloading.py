"""Reloads the models on SIGHUP and, if `watch` is set, when their files change."""

import asyncio
import contextlib
import signal
import threading
from collections.abc import AsyncIterator

import watchfiles

from app.models import Models
from app.settings import Settings


@contextlib.asynccontextmanager
async def reloading(models: Models, settings: Settings) -> AsyncIterator[None]:
    """Reloads `models` on each signal or file change while its block runs."""
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()

    def start_reload() -> None:
        task = asyncio.create_task(models.reload())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def watch() -> None:
        # watching a file itself would miss its replacement by a rename
        folders = {path if path.is_dir() else path.parent for path in settings.model}
        async for _ in watchfiles.awatch(*folders, recursive=False, stop_event=ended):
            start_reload()

    ended = asyncio.Event()
    watcher = asyncio.create_task(watch()) if settings.watch else None
    handles_signals = hasattr(signal, "SIGHUP") and threading.current_thread() is threading.main_thread()
    if handles_signals:
        loop.add_signal_handler(signal.SIGHUP, start_reload)
    try:
        yield
    finally:
        ended.set()
        if handles_signals:
            loop.remove_signal_handler(signal.SIGHUP)
        await asyncio.gather(*tasks, *([watcher] if watcher else []))
