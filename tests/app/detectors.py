"""Real detectors that block or fail on demand."""

import threading
from pathlib import Path
from typing import NoReturn

from model.canvas import Canvases
from model.detector import Detections, Detector


class HeldDetector(Detector):
    """Blocks inference while `gate` is cleared, unless stopped; records its batches: sizes, image shapes, threads."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "cpu", 1)
        self.gate = threading.Event()
        self.gate.set()
        self.batches: list[int] = []
        self.shapes_seen: list[list[tuple[int, ...]]] = []
        self.threads_seen: list[int | None] = []

    def infer(self, canvases: Canvases, threads: int | None = None) -> list[Detections]:
        self.batches.append(len(canvases))
        self.shapes_seen.append([canvas.shape[:2] for canvas in canvases])
        self.threads_seen.append(threads)
        assert self.gate.wait(30)
        return super().infer(canvases, threads)

    def stop(self) -> None:
        super().stop()
        self.gate.set()


class OutOfMemoryDetector(Detector):
    """Raises for a batch that contains a white image, like a session that runs out of memory."""

    def infer(self, canvases: Canvases, threads: int | None = None) -> list[Detections]:
        if any(canvas[32, 48].min() == 255 for canvas in canvases):
            raise RuntimeError("out of memory")
        return super().infer(canvases, threads)


class CrashingDetector(Detector):
    """Raises an exception that the server does not expect."""

    def prepare(self, *_: object) -> NoReturn:
        raise ZeroDivisionError("a secret")
