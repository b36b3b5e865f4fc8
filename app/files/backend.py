"""The backends of the command: a model in this process, or a server."""

import asyncio
import contextlib
import dataclasses
import functools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.answers import describe_model, encode_answer
from app.errors import build_problem
from app.inference.models import open_detector
from app.inference.served_model import ServedModel
from app.pipeline import IMAGE_ERRORS, Filter, build_filter, find_objects
from app.requests.body import BodyTooLarge, EmptyBody, check_file_size
from app.schemas import Answer, ModelDescription, Refused
from app.service import Service, build_service
from app.settings import Settings

_IMAGES_IN_FLIGHT = 32  # in this process: enough to fill the next batches while others are computed
_REQUESTS_IN_FLIGHT = 8
_RETRIES = 20  # many: a batch job can wait


@dataclasses.dataclass(frozen=True)
class Backend:
    """Detects objects: `detect` takes an image file or RGB pixels (h, w, 3); at most `in_flight` calls at a time.

    It raises `Refused`, `OSError` for a file that cannot be read, and `ConnectionError` if the server does not respond.
    """

    detect: Callable[[Path | NDArray[np.uint8]], Awaitable[Answer]]
    models: Mapping[str, ModelDescription]  # by name
    in_flight: int


@contextlib.asynccontextmanager
async def open_local_backend(
    settings: Settings, threshold: float | None, limit: int | None, labels: Sequence[str] | None
) -> AsyncIterator[Backend]:
    """Runs the first model of the settings in this process; raises `UnknownLabel`, and what `Detector` raises."""
    detector = open_detector(settings.find_models()[0], settings)
    wanted = build_filter(settings, detector.metadata, threshold, limit, labels)
    service = build_service(settings, [detector])
    model = service.models.get()
    async with service.running():
        detect = functools.partial(_detect, service, model, wanted)
        yield Backend(detect, {model.name: describe_model(model)}, min(_IMAGES_IN_FLIGHT, settings.max_queue))


@contextlib.asynccontextmanager
async def open_server_backend(
    url: str,
    api_key: str | None,
    model: str | None,
    threshold: float | None,
    limit: int | None,
    labels: Sequence[str] | None,
) -> AsyncIterator[Backend]:
    """Sends images to a server; raises `NoAnswer`, `Refused`, and `ModuleNotFoundError` if httpx is missing."""
    from app.client import AsyncClient

    async with AsyncClient(url, api_key=api_key, retries=_RETRIES) as client:
        models = {each.name: each for each in await client.models()}
        detect = functools.partial(client.detect, model=model, threshold=threshold, limit=limit, labels=labels)
        yield Backend(detect, models, _REQUESTS_IN_FLIGHT)


async def _detect(service: Service, model: ServedModel, wanted: Filter, image: Path | NDArray[np.uint8]) -> Answer:
    """Processes one image like a request, but without a timeout."""
    started = time.perf_counter()
    try:
        with model.batcher.admission.admit():
            max_bytes = service.settings.max_image_bytes
            content = await asyncio.to_thread(_read_file, image, max_bytes) if isinstance(image, Path) else image
            found = await find_objects(service, model, content, wanted)
    except (EmptyBody, BodyTooLarge, *IMAGE_ERRORS) as error:
        raise Refused(build_problem(error, service.metrics)) from error
    return Answer.model_validate_json(encode_answer(model.detector.metadata, found, time.perf_counter() - started))


def _read_file(path: Path, max_bytes: int) -> bytes:
    with path.open("rb") as file:  # the size of a pipe is unknown before it is read
        data = file.read(max_bytes + 1)
    check_file_size(len(data), max_bytes)
    return data
