"""The models that are served: loaded, warmed up, swapped and taken away while requests run."""

import asyncio
import collections
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from app import __version__
from app.arrangement import Arrangement, arrange, batch_sizes
from app.batcher import Batcher, InferenceFailed
from app.metrics import Metrics
from app.settings import Settings
from model.canvas import Canvas
from model.detector import Detections, Detector
from model.metadata import InvalidModel
from model.session import ProviderUnavailable

logger = logging.getLogger(__name__)

Picture = bytes | NDArray[np.uint8]  # an image file, or RGB pixels (h, w, 3)


class NotReady(Exception):
    """A model is being warmed up, or cannot be run."""


class UnknownModel(Exception):
    """A model was asked for by a name that is not served; the message lists those that are."""


class Prepared(NamedTuple):
    """A picture ready for the model, and when it was made so, by `time.perf_counter`."""

    canvas: Canvas
    started: float
    ended: float


class Computed(NamedTuple):
    """What the model found in a picture, in input pixels, and when it did, by `time.perf_counter`."""

    detections: Detections
    prepared: Prepared
    started: float
    ended: float


class ServedModel:
    """One model and the queue in front of it.

    Pictures are prepared before they queue where that fills a GPU's batches, or keeps CPUs busy. Where every CPU
    computes by itself, its thread prepares what it computes, which spares a picture the way from thread to thread.
    """

    def __init__(self, detector: Detector, settings: Settings, metrics: Metrics) -> None:
        self.detector = detector
        self.name = detector.metadata.name
        self.threshold = settings.find_threshold(detector.metadata)  # where a request does not say
        self.prepares_first = self._is_padded = detector.provider != "cpu"
        self.arrangement: Arrangement | None = None  # until it is warm
        self._settings = settings
        self._metrics = metrics
        self._blank = np.zeros((*detector.shapes[-1], 3), np.uint8)
        self._batch_size = metrics.batch_size.labels(self.name)
        self.batcher: Batcher[Picture | Prepared, Computed] = Batcher(
            self._compute,
            1,
            settings.max_queue,
            settings.inference_timeout_seconds,
            metrics.abandoned.labels(self.name).inc,
            key=_find_shape,
        )

    def warm_up(self) -> None:
        """Arranges how it is run, and computes each batch size and shape that the provider prepares for; once."""
        if self.arrangement:
            return
        started = time.perf_counter()
        arrangement = arrange(self.detector, self._blank, self._settings)
        self.batcher.instances, self.batcher.max_batch = arrangement.instances, arrangement.max_batch
        if self._is_padded:
            for shape in self.detector.shapes:
                for size in batch_sizes(arrangement.max_batch):
                    self.detector.infer([np.zeros((*shape, 3), np.uint8)] * size)
        else:
            self.detector.infer([self._blank])
            self.detector.infer([self._blank] * arrangement.max_batch, arrangement.session_threads)
        self.arrangement = arrangement
        self.prepares_first = self._is_padded or arrangement.threads > 1
        self.describe()
        logger.info("%s: warmed up in %.1f s: %s", self.name, time.perf_counter() - started, arrangement)

    def describe(self) -> None:
        """Tells the metrics what is served, and how."""
        arranged = self.arrangement.model_dump(exclude={"images_per_second"}) if self.arrangement else {}
        facts = {
            "provider": self.detector.provider,
            "precision": self.detector.metadata.precision,
            "version": __version__,
            **{name: str(value) for name, value in arranged.items()},
        }
        self._metrics.model.labels(self.name).info(facts)

    def prepare(self, picture: Picture) -> Prepared:
        """Decodes and letterboxes; raises what `Detector.prepare` raises."""
        started = time.perf_counter()
        canvas = self.detector.prepare(picture, self._settings.max_pixels)
        return Prepared(canvas, started, time.perf_counter())

    async def run(self) -> None:
        """Warms the model up, then serves what has queued and what comes, until the batcher is closed."""
        try:
            await asyncio.to_thread(self.warm_up)
            await self.batcher.run()
        except Exception:
            logger.exception("%s cannot be run", self.name)
        finally:
            self.batcher.close()

    @property
    def is_ready(self) -> bool:
        """Whether what is sent is computed, as far as the last batches tell."""
        return self.batcher.running and not self.batcher.failing

    def check_live(self) -> None:
        """Raises `NotReady` where inference has ended, or hangs again and again."""
        if self.batcher.admission.closed:
            raise NotReady(f"{self.name}: inference has ended; the server's log says why")
        if self.batcher.hanging:
            raise NotReady(f"{self.name}: inference hangs; restart the server")

    async def check_ready(self) -> None:
        """Raises `NotReady` where nothing is computed yet, or any more; tries again after repeated failures."""
        if not self.batcher.running:
            raise NotReady(f"{self.name} is being warmed up, or has ended")
        if self.batcher.failing:
            try:
                with self.batcher.admit() as submit:
                    await submit(self._blank)
            except InferenceFailed as error:
                raise NotReady(f"{self.name} failed repeatedly, and just now: {error}") from error

    def _compute(self, pictures: Sequence[Picture | Prepared], is_alone: bool) -> Sequence[Computed | Exception]:
        prepared = [each if isinstance(each, Prepared) else self._try_to_prepare(each) for each in pictures]
        ready = [each for each in prepared if isinstance(each, Prepared)]
        started = time.perf_counter()
        found = iter(self._infer([each.canvas.pixels for each in ready], is_alone))
        ended = time.perf_counter()
        return [
            Computed(next(found), each, started, ended) if isinstance(each, Prepared) else each for each in prepared
        ]

    def _try_to_prepare(self, picture: Picture) -> Prepared | Exception:
        try:
            return self.prepare(picture)
        except Exception as error:  # the picture's own, which is none of the rest of the batch's business
            return error

    def _infer(self, canvases: Sequence[NDArray[np.uint8]], is_alone: bool) -> Sequence[Detections]:
        if not canvases:
            return []
        assert self.arrangement is not None
        for size in collections.Counter(canvas.shape for canvas in canvases).values():
            self._batch_size.observe(size)
        threads = None if is_alone else self.arrangement.session_threads
        if not self._is_padded:
            return self.detector.infer(canvases, threads)
        # other sizes than those that CUDA has prepared are slow at first
        size = min(each for each in batch_sizes(self.arrangement.max_batch) if each >= len(canvases))
        return self.detector.infer([*canvases, *[canvases[-1]] * (size - len(canvases))], threads)[: len(canvases)]


def _find_shape(item: Picture | Prepared) -> tuple[int, ...] | None:
    """What is computed in one batch; None where only the thread that computes it will know."""
    return item.canvas.pixels.shape if isinstance(item, Prepared) else None


class Models:
    """What is served, by file; the first is the one that a request without a name gets.

    Raises `InvalidModel` where two files hold models of one name.
    """

    def __init__(self, detectors: Sequence[Detector], settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._served: dict[Path, ServedModel] = {}
        self._signatures: dict[Path, tuple[int, ...]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._reloading = asyncio.Lock()
        self.faults: dict[Path, str] = {}  # files that could not be loaded, and why
        for detector in detectors:
            self._check_name(detector)
            self._put(detector.path, ServedModel(detector, settings, metrics))
            self._signatures[detector.path] = _sign(detector.path)

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._served.values())

    def get(self, name: str | None = None) -> ServedModel:
        """Returns the model of that name; raises `UnknownModel`."""
        for model in self:
            if name is None or model.name == name:
                return model
        raise UnknownModel(f"there is no model {name!r}; there is {', '.join(repr(model.name) for model in self)}")

    def start(self) -> None:
        """Begins to warm up and serve, in the background."""
        for model in self:
            self._start(model)

    async def stop(self) -> None:
        """Ends what is queued and waits for what is computed."""
        for model in self:
            model.batcher.close()
        await asyncio.gather(*self._tasks)

    async def reload(self) -> None:
        """Serves what the files now hold; what has not changed goes on, and what cannot be loaded changes nothing.

        A changed file's old model serves until the new one is warm, and finishes what it was given.
        """
        async with self._reloading:
            paths = self._settings.find_models()
            gone = [path for path in self._served if path not in paths]
            for path in paths:
                if _sign(path) != self._signatures.get(path) or path in self.faults:
                    await self._load(path, gone)
            self.faults = {path: reason for path, reason in self.faults.items() if path in paths}
            self._signatures = {path: sign for path, sign in self._signatures.items() if path in paths}
            kept = [path for path in paths if path in self._served]
            if not kept:  # a server without a model is of no use to anybody
                logger.error("there is no model file left: what was loaded serves on")
                return
            for path in gone:
                self._take_away(path)
            self._served = {path: self._served[path] for path in kept}

    async def _load(self, path: Path, gone: Sequence[Path]) -> None:
        signature = _sign(path)

        def open_and_warm_up() -> ServedModel:
            detector = open_detector(path, self._settings)
            self._check_name(detector, gone)
            model = ServedModel(detector, self._settings, self._metrics)
            model.warm_up()
            return model

        try:
            model = await asyncio.to_thread(open_and_warm_up)
        except Exception as error:
            known = isinstance(error, InvalidModel | ProviderUnavailable)
            self.faults[path] = str(error) if known else f"{path}: it cannot be run: {error}"
            logger.error("not loaded: %s", self.faults[path], exc_info=not known)
            return
        finally:
            self._signatures[path] = signature
        self.faults.pop(path, None)
        if path in self._served:
            self._take_away(path)
        self._put(path, model)
        self._start(model)
        logger.info("%s: loaded from %s", model.name, path)

    def _check_name(self, detector: Detector, gone: Sequence[Path] = ()) -> None:
        name = detector.metadata.name
        for path, model in self._served.items():
            if model.name == name and path != detector.path and path not in gone:
                raise InvalidModel(f"{detector.path}: it is named {name!r}, as {path} is: export it under another name")

    def _put(self, path: Path, model: ServedModel) -> None:
        self._served[path] = model
        self._metrics.queue_depth.labels(model.name).set_function(lambda: model.batcher.queued)
        self._metrics.in_flight.labels(model.name).set_function(lambda: model.batcher.admission.taken)
        model.describe()
        self._metrics.ready.labels(model.name).set_function(lambda: model.is_ready)

    def _start(self, model: ServedModel) -> None:
        task = asyncio.create_task(model.run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _take_away(self, path: Path) -> None:
        model = self._served.pop(path)
        if all(other.name != model.name for other in self):
            metrics = self._metrics
            for metric in (metrics.queue_depth, metrics.in_flight, metrics.ready, metrics.model):
                metric.remove(model.name)
        model.batcher.admission.retire()
        logger.info("%s: taken away", model.name)


def open_detector(path: Path, settings: Settings) -> Detector:
    """Opens a model as it is set; raises what `Detector` raises."""
    return Detector(path, settings.provider, settings.threads, settings.gpu)


def _sign(path: Path) -> tuple[int, ...]:
    """What changes when a file is written or replaced."""
    try:
        state = path.stat()
    except OSError:
        return ()
    return (state.st_mtime_ns, state.st_size, state.st_ino)
