"""What makes the server look at its model files again: SIGHUP, and where it is asked for, a change of the files."""

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
    """Reloads `models` at each sign, until the block ends."""
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()

    def begin() -> None:
        task = asyncio.create_task(models.reload())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def watch() -> None:
        # a folder sees files replaced by renaming, as a file's own watch would not
        folders = {path if path.is_dir() else path.parent for path in settings.model}
        async for _ in watchfiles.awatch(*folders, recursive=False, stop_event=ended):
            begin()

    ended = asyncio.Event()
    watcher = asyncio.create_task(watch()) if settings.watch else None
    takes_signals = hasattr(signal, "SIGHUP") and threading.current_thread() is threading.main_thread()
    if takes_signals:
        loop.add_signal_handler(signal.SIGHUP, begin)
    try:
        yield
    finally:
        ended.set()
        if takes_signals:
            loop.remove_signal_handler(signal.SIGHUP)
        await asyncio.gather(*tasks, *([watcher] if watcher else []))
