"""A served model: its warm-up, its batches, its readiness."""

import asyncio
import collections
import logging
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from app import __version__
from app.inference.arrangement import batch_sizes, choose_arrangement
from app.inference.batcher import Batcher, InferenceFailed
from app.schemas import Arrangement
from app.settings import Settings
from app.telemetry.metrics import Metrics
from model.canvas import Canvas, Canvases
from model.detector import Detections, Detector

logger = logging.getLogger(__name__)

_STOP_SECONDS = 1.0  # for running batches to end once the detector is stopped

Image = bytes | NDArray[np.uint8]  # an image file, or RGB pixels (h, w, 3)


class NotReady(Exception):
    """A model is still warming up, or has stopped working."""


class Prepared(NamedTuple):
    """An image as input for the model; the start and end of its preparation, by `time.perf_counter`."""

    canvas: Canvas
    started: float
    ended: float


class Computed(NamedTuple):
    """The detections in an image, in input pixels; the start and end of the inference, by `time.perf_counter`."""

    detections: Detections
    prepared: Prepared
    started: float
    ended: float


class ServedModel:
    """One model and its batcher.

    Images are prepared (decoded, letterboxed) before they are queued if that fills a GPU's batches or keeps CPUs busy.
    If each inference uses a single thread, this thread also prepares its images, which saves the change of threads.
    """

    def __init__(self, detector: Detector, settings: Settings, metrics: Metrics) -> None:
        self.detector = detector
        self.name = detector.metadata.name
        self.threshold = settings.find_threshold(detector.metadata)  # unless a request sets it
        self.prepares_first = detector.provider != "cpu"
        self.arrangement: Arrangement | None = None  # None before the warm-up
        self._settings = settings
        self._metrics = metrics
        self._blank = np.zeros((*detector.shapes[-1], 3), np.uint8)
        self._batch_size = metrics.batch_size.labels(self.name)
        self.batcher: Batcher[Image | Prepared, Computed] = Batcher(
            self._compute,
            settings.max_queue,
            settings.inference_timeout_seconds,
            metrics.abandoned.labels(self.name).inc,
            key=_get_batch_key,
            prepare=self.prepare,
        )

    def warm_up(self) -> None:
        """Chooses the arrangement and runs each batch size that a GPU prepares for; does nothing once it is warm."""
        if self.arrangement:
            return
        started = time.perf_counter()
        arrangement = choose_arrangement(self.detector, self._blank, self._settings)
        is_on_gpu = self.detector.provider != "cpu"
        for size in batch_sizes(arrangement.max_batch) if is_on_gpu else [1]:
            self.detector.infer([self._blank] * size)
        self.arrangement = arrangement
        self.prepares_first = is_on_gpu or arrangement.threads > 1
        logger.info("%s: warmed up in %.1f s: %s", self.name, time.perf_counter() - started, arrangement)

    async def warm_up_in_thread(self) -> None:
        """Warms up in a thread, and stops the model if this is cancelled: the event loop joins threads as it closes."""
        try:
            await asyncio.to_thread(self.warm_up)
        except asyncio.CancelledError:
            self.detector.stop()
            raise

    def describe(self) -> None:
        """Publishes the model and its arrangement as the metric `centernet_model`."""
        arrangement = self.arrangement.model_dump(exclude={"images_per_second"}) if self.arrangement else {}
        facts = {
            "provider": self.detector.provider,
            "precision": self.detector.metadata.precision,
            "version": __version__,
            **{name: str(value) for name, value in arrangement.items()},
        }
        self._metrics.model.labels(self.name).info(facts)

    def prepare(self, image: Image | Prepared) -> Prepared:
        """Decodes and letterboxes an image, unless it is prepared; raises what `Detector.prepare` raises."""
        if isinstance(image, Prepared):
            return image
        started = time.perf_counter()
        canvas = self.detector.prepare(image, self._settings.max_pixels)
        return Prepared(canvas, started, time.perf_counter())

    async def run(self) -> None:
        """Warms the model up, then runs the batcher until it is closed."""
        try:
            await self.warm_up_in_thread()
            assert self.arrangement is not None
            self.describe()
            await self.batcher.run(self.arrangement.instances, self.arrangement.max_batch)
        except asyncio.CancelledError:
            self.detector.stop()
            # a thread that is still within ONNX Runtime when Python exits would abort the process
            await asyncio.to_thread(self.batcher.join_workers, _STOP_SECONDS)
            raise
        except Exception:
            logger.exception("%s cannot be run", self.name)
        finally:
            self.batcher.close()

    @property
    def is_ready(self) -> bool:
        """Whether the batcher runs and its latest batches did not all fail."""
        return self.batcher.running and not self.batcher.failing

    def check_live(self) -> None:
        """Raises `NotReady` if inference has ended, or hangs repeatedly."""
        if self.batcher.admission.closed:
            raise NotReady(f"{self.name}: inference has ended; the server's log says why")
        if self.batcher.hanging:
            raise NotReady(f"{self.name}: inference hangs; restart the server")

    async def check_ready(self) -> None:
        """Raises `NotReady` if the batcher does not run; after repeated failures, tries an inference first."""
        if not self.batcher.running:
            raise NotReady(f"{self.name} is being warmed up, or has ended")
        if self.batcher.failing:
            try:
                with self.batcher.admission.admit():
                    await self.batcher.submit(self._blank)
            except InferenceFailed as error:
                raise NotReady(f"{self.name} failed repeatedly, and just now: {error}") from error

    def _compute(self, images: Sequence[Image | Prepared], is_alone: bool) -> Sequence[Computed | Exception]:
        prepared = [self._try_to_prepare(each) for each in images]
        ready = [each for each in prepared if isinstance(each, Prepared)]
        started = time.perf_counter()
        found = iter(self._infer([each.canvas.pixels for each in ready], is_alone))
        ended = time.perf_counter()
        return [
            Computed(next(found), each, started, ended) if isinstance(each, Prepared) else each for each in prepared
        ]

    def _try_to_prepare(self, image: Image | Prepared) -> Prepared | Exception:
        try:
            return self.prepare(image)
        except Exception as error:  # fails this image alone, and not its batch
            return error

    def _infer(self, canvases: Canvases, is_alone: bool) -> Sequence[Detections]:
        if not canvases:
            return []
        assert self.arrangement is not None
        for size in collections.Counter(canvas.shape for canvas in canvases).values():
            self._batch_size.observe(size)
        return self.detector.infer(canvases, None if is_alone else self.arrangement.session_threads)


def _get_batch_key(item: Image | Prepared) -> tuple[int, ...] | None:
    """Returns the shape that a batch's items share; None if the worker thread prepares the item."""
    return item.canvas.pixels.shape if isinstance(item, Prepared) else None
