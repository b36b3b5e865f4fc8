"""What a running server is made of, handed to whoever needs it."""

import asyncio
import dataclasses
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from app import __version__
from app.batcher import Batcher
from app.metrics import Metrics
from app.settings import Settings
from model.detector import Detections, Detector

logger = logging.getLogger(__name__)


class NotReady(Exception):
    """The model is being warmed up, or cannot be run."""


class UnknownModel(Exception):
    """A model was asked for by a name that is not served."""


@dataclasses.dataclass(frozen=True)
class Service:
    """The parts that one app's requests share."""

    settings: Settings
    detector: Detector
    batcher: Batcher[NDArray[np.uint8], Detections]
    decoders: ThreadPoolExecutor
    metrics: Metrics

    def check_live(self) -> None:
        """Raises `NotReady` where inference has ended."""
        if self.batcher.closed:
            raise NotReady("inference has ended; the server's log says why")

    def check_ready(self) -> None:
        """Raises `NotReady` where nothing is computed yet, or any more."""
        if not self.batcher.running:
            raise NotReady("the model is being warmed up, or has ended")

    def check_model(self, name: str) -> None:
        """Raises `UnknownModel` where `name` is not the model's."""
        if name != self.detector.metadata.name:
            raise UnknownModel(f"there is no model {name!r}; there is {self.detector.metadata.name!r}")

    async def run(self) -> None:
        """Warms the model up, then serves what has queued and what comes, until the batcher is closed."""
        try:
            started = time.perf_counter()
            await asyncio.to_thread(self._warm_up)
            logger.info("ready: warmed up in %.1f s", time.perf_counter() - started)
            await self.batcher.run()
        except Exception:
            logger.exception("the model cannot be run")
        finally:
            self.batcher.close()

    def _warm_up(self) -> None:
        blank = np.zeros((self.detector.metadata.input_height, self.detector.metadata.input_width, 3), np.uint8)
        for size in (1, self.settings.max_batch):  # the usual one, and the one that needs the most memory
            self.detector.infer([blank] * size)


def build_service(settings: Settings, detector: Detector) -> Service:
    """Joins the detector, the batcher in front of it, the decoders in front of that, and the metrics of all."""
    metrics = Metrics()

    def compute(canvases: Sequence[NDArray[np.uint8]]) -> Sequence[Detections]:
        metrics.batch_size.observe(len(canvases))
        return detector.infer(canvases)

    batcher = Batcher(compute, settings.max_batch, settings.max_queue)
    metrics.queue_depth.set_function(lambda: batcher.queued)
    metrics.in_flight.set_function(lambda: batcher.admitted)
    metrics.model.info(
        {
            "name": detector.metadata.name,
            "provider": detector.provider,
            "precision": detector.metadata.precision,
            "version": __version__,
        }
    )
    return Service(settings, detector, batcher, ThreadPoolExecutor(settings.decode_threads, "decode"), metrics)
