"""What a running server is made of, handed to whoever needs it."""

import contextlib
import dataclasses
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers, QueryParams

from app.access import Access
from app.admission import Arrival
from app.metrics import Metrics
from app.models import Models, UnknownModel
from app.parameters import ReadParameters, build_parameters_reader
from app.settings import Settings
from app.stages import Stages
from model.detector import Detector

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer  # an extra


@dataclasses.dataclass(frozen=True)
class Service:
    """The parts that one app's requests share."""

    settings: Settings
    models: Models
    decoders: ThreadPoolExecutor
    metrics: Metrics
    stages: Stages
    access: Access
    read_parameters: ReadParameters

    def check_live(self) -> None:
        """Raises `NotReady` where a model's inference has ended."""
        for model in self.models:
            model.check_live()

    async def check_ready(self) -> None:
        """Raises `NotReady` where a model computes nothing yet, or any more."""
        for model in self.models:
            await model.check_ready()

    def announce(self, query: bytes, headers: tuple[tuple[bytes, bytes], ...]) -> Arrival | None:
        """Announces a picture to the model that a request is for; None where there is none. Raises `Overloaded`."""
        try:
            parameters = self.read_parameters(query, Headers(raw=[*headers]))
            name, timeout_seconds = parameters.model, parameters.timeout
        except RequestValidationError:  # what is wrong is for the app to say, where there is a place
            name, timeout_seconds = QueryParams(query).get("model"), self.settings.timeout_seconds
        try:
            model = self.models.get(name)
        except UnknownModel:
            return None
        return model.batcher.admission.announce(timeout_seconds)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Serves while its block runs; a batch that has begun is finished."""
        self.models.start()
        try:
            yield
        finally:
            await self.models.stop(self.settings.stop_timeout_seconds)
            self.decoders.shutdown(wait=False)


def build_service(settings: Settings, detectors: Sequence[Detector], tracer: "Tracer | None" = None) -> Service:
    """Joins the models, each behind its batcher, the decoders in front of them, and the metrics of all."""
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
