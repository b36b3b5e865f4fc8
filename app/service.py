"""The components that all routes of an app share."""

import contextlib
import dataclasses
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers, QueryParams

from app.access.access import Access
from app.inference.admission import Arrival
from app.inference.models import Models, UnknownModel
from app.requests.parameters import ReadParameters, build_parameters_reader
from app.settings import Settings
from app.telemetry.metrics import Metrics
from app.telemetry.stages import Stages
from model.detector import Detector

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer  # an extra


@dataclasses.dataclass(frozen=True)
class Service:
    """The components that the requests of one app share."""

    settings: Settings
    models: Models
    decoders: ThreadPoolExecutor
    metrics: Metrics
    stages: Stages
    access: Access
    read_parameters: ReadParameters

    def check_live(self) -> None:
        """Raises `NotReady` if a model's inference has ended, or hangs repeatedly."""
        for model in self.models:
            model.check_live()

    async def check_ready(self) -> None:
        """Raises `NotReady` if a model is still warming up, has ended or keeps failing."""
        for model in self.models:
            await model.check_ready()

    def announce(self, query: bytes, headers: tuple[tuple[bytes, bytes], ...]) -> Arrival | None:
        """Announces an image to the admission control of the requested model; None if there is no such model.

        Raises `Overloaded`.
        """
        try:
            parameters = self.read_parameters(query, Headers(raw=[*headers]))
            name, timeout_seconds = parameters.model, parameters.timeout
        except RequestValidationError:  # the app reports the invalid parameter, if the request is admitted
            name, timeout_seconds = QueryParams(query).get("model"), self.settings.timeout_seconds
        try:
            model = self.models.get(name)
        except UnknownModel:
            return None
        return model.batcher.admission.announce(timeout_seconds)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Runs inference while its block runs; finishes the batches that are being computed at the end."""
        self.models.start()
        try:
            yield
        finally:
            await self.models.stop(self.settings.stop_timeout_seconds)
            self.decoders.shutdown(wait=False)


def build_service(settings: Settings, detectors: Sequence[Detector], tracer: "Tracer | None" = None) -> Service:
    """Builds the models with their batchers, the thread pool of decoders, the metrics and the access control."""
    metrics = Metrics()
    return Service(
        settings,
        Models(detectors, settings, metrics),
        ThreadPoolExecutor(settings.decode_threads, "decode"),
        metrics,
        Stages(metrics, tracer),
        Access(settings),
        build_parameters_reader(settings),
    )
