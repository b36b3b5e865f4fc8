"""Real detectors that a test can hold, or make fail."""

import threading
from pathlib import Path
from typing import NoReturn

from model.canvas import Canvases
from model.detector import Detections, Detector


class HeldDetector(Detector):
    """Computes only while `gate` is open, and keeps the sizes of the batches that it was given, and their shapes."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "cpu", 1)
        self.gate = threading.Event()
        self.gate.set()
        self.batches: list[int] = []
        self.shapes_seen: list[list[tuple[int, ...]]] = []

    def infer(self, canvases: Canvases, threads: int | None = None) -> list[Detections]:
        self.batches.append(len(canvases))
        self.shapes_seen.append([canvas.shape[:2] for canvas in canvases])
        assert self.gate.wait(30)
        return super().infer(canvases, threads)


class BrittleDetector(Detector):
    """Raises for a batch that holds a white picture, as a session that runs out of memory would."""

    def infer(self, canvases: Canvases, threads: int | None = None) -> list[Detections]:
        if any(canvas[32, 48].min() == 255 for canvas in canvases):
            raise RuntimeError("out of memory")
        return super().infer(canvases, threads)


class SurprisedDetector(Detector):
    """Fails in a way that nobody has foreseen."""

    def prepare(self, *_: object) -> NoReturn:
        raise ZeroDivisionError("a secret")
