"""A progress bar with loss, throughput and remaining time."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@contextmanager
def progress_bar(console: Console, title: str, total: int, start: int = 0) -> Iterator[Callable[..., None]]:
    """Yields `advance(images=, loss=)`, to be called after every step."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=total, completed=start, note="")
        started, processed = time.monotonic(), 0

        def advance(*, images: int, loss: float | None = None) -> None:
            nonlocal processed
            processed += images
            rate = f"{processed / (time.monotonic() - started):.1f} images/s"
            bar.update(task, advance=1, note=rate if loss is None else f"loss {loss:.3f}, {rate}")

        yield advance
