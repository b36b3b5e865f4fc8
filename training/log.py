"""The run folder's `log.txt`: what the console said."""

import datetime
import shlex
import sys
from pathlib import Path
from types import TracebackType

from rich.console import Console, ConsoleRenderable, NewLine, RenderHook
from rich.control import Control

_WIDTH = 160  # columns of the file, whatever the terminal's


class Log(RenderHook):
    """Appends what `console` prints to `path` while it is entered, behind the command and the time, and how it ended.

    What is printed before the file's folder is there waits for it: a run that is refused leaves nothing. Progress bars
    are left out.
    """

    def __init__(self, console: Console, path: Path) -> None:
        self._console = console
        self._path = path
        self._waiting: list[ConsoleRenderable | str] = []

    def __enter__(self) -> "Log":
        self._waiting = [f"{_now()} {shlex.join(sys.orig_argv)}"]
        self._console.push_render_hook(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._console.pop_render_hook()
        ending = "ended" if kind is None else f"stopped by {kind.__name__}: {error}".rstrip(": ")
        self._write([f"{_now()} {ending}"])

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """Is told by Rich what is about to be printed."""
        self._write([each for each in renderables if not isinstance(each, Control | NewLine)])
        return renderables

    def _write(self, lines: list[ConsoleRenderable] | list[str]) -> None:
        if not lines:
            return
        self._waiting += lines
        if self._path.parent.is_dir():
            with self._path.open("a") as file:
                plain = Console(file=file, width=_WIDTH, no_color=True, markup=False, highlight=False, soft_wrap=True)
                for line in self._waiting:
                    plain.print(line)
            self._waiting.clear()


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(" ", "seconds")
