"""Copies console output to the run folder's `log.txt`."""

import datetime
import shlex
import sys
from pathlib import Path
from types import TracebackType

from rich.console import Console, ConsoleRenderable, NewLine, RenderHook
from rich.control import Control

_WIDTH = 160  # columns of the file, whatever the terminal's


class Log(RenderHook):
    """While entered, appends all output of `console` to `path`, after time and command and before how it ended.

    Output is buffered until the folder of `path` exists, so that a run that fails its checks leaves no folder. Progress
    bars are not logged.
    """

    def __init__(self, console: Console, path: Path) -> None:
        self._console = console
        self._path = path
        self._buffer: list[ConsoleRenderable | str] = []

    def __enter__(self) -> "Log":
        self._buffer = [f"{_now()} {shlex.join(sys.orig_argv)}"]
        self._console.push_render_hook(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._console.pop_render_hook()
        ending = "ended" if kind is None else f"stopped by {kind.__name__}: {error}".rstrip(": ")
        self._write([f"{_now()} {ending}"])

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """Logs what Rich is about to print, and returns it unchanged."""
        self._write([each for each in renderables if not isinstance(each, Control | NewLine)])
        return renderables

    def _write(self, lines: list[ConsoleRenderable] | list[str]) -> None:
        if not lines:
            return
        self._buffer += lines
        if self._path.parent.is_dir():
            with self._path.open("a") as file:
                plain = Console(file=file, width=_WIDTH, no_color=True, markup=False, highlight=False, soft_wrap=True)
                for line in self._buffer:
                    plain.print(line)
            self._buffer.clear()


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(" ", "seconds")
