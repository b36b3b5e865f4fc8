"""The served models: loaded, replaced and removed while requests run."""

import asyncio
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from app.inference.served_model import ServedModel
from app.settings import Settings
from app.telemetry.metrics import Metrics
from model.detector import Detector, read_signature
from model.gpu import ProviderUnavailable
from model.metadata import InvalidModel

logger = logging.getLogger(__name__)


class UnknownModel(Exception):
    """No model of the requested name is served; the message lists the names of those that are."""


class Models:
    """The served models by file; a request that names none gets the first.

    Raises `InvalidModel` if two files hold models of the same name; if they are watched, it leaves out the second one.
    """

    def __init__(self, detectors: Sequence[Detector], settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._served: Mapping[Path, ServedModel] = {}  # never changed, but replaced, since requests iterate over it
        self._signatures = {detector.path: detector.signature for detector in detectors}
        self._tasks: dict[asyncio.Task[None], ServedModel] = {}
        self._reloading = asyncio.Lock()
        self.faults: dict[Path, str] = {}  # by file, why it could not be loaded
        metrics.refused.set_function(lambda: len(self.faults))
        loaded = {detector.path: ServedModel(detector, settings, metrics) for detector in detectors}
        errors: dict[Path, Exception] = {}
        self._served = self._choose(self._signatures, loaded, errors)
        if errors and not settings.watch:
            raise next(iter(errors.values()))
        self._report(errors)
        for model in self:
            self._publish(model)

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._served.values())

    def reflect(self, signatures: Mapping[Path, tuple[int, ...]]) -> bool:
        """Whether the last load saw files of these signatures, and all that it reports as faulty are among them."""
        return signatures == self._signatures and self.faults.keys() <= signatures.keys()

    def read_signatures(self) -> dict[Path, tuple[int, ...]]:
        """Returns the signatures of the files as they are now."""
        return {path: read_signature(path) for path in self._settings.find_models()}

    def get(self, name: str | None = None) -> ServedModel:
        """Returns the model of that name; raises `UnknownModel`."""
        for model in self:
            if name is None or model.name == name:
                return model
        raise UnknownModel(f"there is no model {name!r}; there is {', '.join(repr(model.name) for model in self)}")

    def start(self) -> None:
        """Starts to warm up and serve, in the background."""
        for model in self:
            self._start(model)

    async def stop(self, timeout_seconds: float) -> None:
        """Fails queued items and waits for running batches, at most `timeout_seconds`."""
        for model in self:
            model.batcher.close()
        for task, model in self._tasks.items():
            if not model.batcher.running:  # it is being warmed up
                task.cancel()
        if self._tasks:
            _, hanging = await asyncio.wait(self._tasks, timeout=timeout_seconds)
            for task in hanging:
                task.cancel()
            await asyncio.gather(*hanging, return_exceptions=True)

    async def reload(self) -> None:
        """Loads new and changed files, and retires models whose files are gone; a faulty file changes nothing.

        The old models serve until the new ones are warm and take over together, so that these may swap names; they
        finish the requests they have.
        """
        async with self._reloading:
            try:
                signatures = await asyncio.to_thread(self.read_signatures)
            except OSError as error:
                fault = f"{error.filename} cannot be listed: {error.strerror}"
                self.faults[Path(error.filename)] = fault
                logger.error("not loaded: %s", fault)
                return
            loaded: dict[Path, ServedModel] = {}
            errors: dict[Path, Exception] = {}
            for path, signature in signatures.items():
                if signature != self._signatures.get(path) or path in self.faults:
                    try:
                        detector = await asyncio.to_thread(open_detector, path, self._settings)
                        loaded[path] = ServedModel(detector, self._settings, self._metrics)
                    except Exception as error:
                        errors[path] = error
            self._choose(signatures, loaded, errors)  # files whose name is taken need no warm-up
            for path, model in [*loaded.items()]:
                try:
                    await model.warm_up_in_thread()
                except Exception as error:
                    errors[path] = error
                    del loaded[path]
            served = self._choose(signatures, loaded, errors)
            self._signatures = signatures
            self._report({path: errors[path] for path in signatures if path in errors})
            if not served:  # a server without a model would be of no use
                logger.error("no model file is left: the loaded models keep serving")
                return
            previous, self._served = self._served, served
            for path, model in loaded.items():
                self._publish(model)
                self._start(model)
                logger.info("%s: loaded from %s", model.name, path)
            for path, model in previous.items():
                if served.get(path) is not model:
                    self._retire(model)

    def _choose(
        self, paths: Iterable[Path], loaded: dict[Path, ServedModel], errors: dict[Path, Exception]
    ) -> dict[Path, ServedModel]:
        """Returns the model of each file: the loaded one, else the one served; moves those of a taken name to `errors`.

        A file that is refused keeps its old model, and that its name.
        """
        chosen = {**self._served, **loaded}
        chosen = {path: chosen[path] for path in paths if path in chosen}
        owners: dict[str, Path] = {}
        for path in sorted(chosen, key=lambda path: path in loaded):  # the served ones first: they do not yield
            name = chosen[path].name
            if (owner := owners.setdefault(name, path)) != path:
                errors[path] = InvalidModel(
                    f"{path}: it is named {name!r}, as {owner} is: export it under another name"
                )
                del loaded[path]
                return self._choose(paths, loaded, errors)
        return chosen

    def _report(self, errors: Mapping[Path, Exception]) -> None:
        self.faults = {}
        for path, error in errors.items():
            known = isinstance(error, InvalidModel | ProviderUnavailable)
            self.faults[path] = str(error) if known else f"{path}: it cannot be run: {error}"
            logger.error("not loaded: %s", self.faults[path], exc_info=None if known else error)

    def _publish(self, model: ServedModel) -> None:
        self._metrics.queue_depth.labels(model.name).set_function(lambda: model.batcher.queued)
        self._metrics.in_flight.labels(model.name).set_function(lambda: model.batcher.admission.in_flight)
        model.describe()
        self._metrics.ready.labels(model.name).set_function(lambda: model.is_ready)

    def _start(self, model: ServedModel) -> None:
        task = asyncio.create_task(model.run())
        self._tasks[task] = model
        task.add_done_callback(self._tasks.pop)

    def _retire(self, model: ServedModel) -> None:
        if all(other.name != model.name for other in self):
            metrics = self._metrics
            for metric in (metrics.queue_depth, metrics.in_flight, metrics.ready, metrics.model):
                metric.remove(model.name)
        model.batcher.admission.retire()
        logger.info("%s: retired", model.name)


def open_detector(path: Path, settings: Settings) -> Detector:
    """Opens a model with the settings' provider, threads and GPU options; raises what `Detector` raises."""
    return Detector(path, settings.provider, settings.threads, settings.gpu)


def open_detectors(settings: Settings) -> list[Detector]:
    """Opens all models of the settings; raises what `Detector` raises.

    If the models are watched, it leaves out files that cannot be loaded, unless that is all of them.
    """
    detectors, errors = [], []
    for path in settings.find_models():
        try:
            detectors.append(open_detector(path, settings))
        except (InvalidModel, ProviderUnavailable) as error:
            if not settings.watch:
                raise
            errors.append(error)  # the watch tries again, and reports it
    if not detectors:
        raise errors[0]
    return detectors
