"""The way of a picture: file or pixels → canvas → batch → boxes. Every route goes it."""

import asyncio
import collections
import contextlib
import dataclasses
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Executor

import numpy as np
from fastapi import Request

from app.admission import Arrival, Stopped
from app.batcher import InferenceFailed, Served
from app.deadline import answered_within
from app.disconnect import cancelled_on_disconnect
from app.served_model import Computed, Picture, Prepared, ServedModel
from app.service import Service
from app.settings import Settings
from model.detector import Detections, move_to_photo
from model.image import InvalidImage
from model.letterbox import Letterbox
from model.metadata import Metadata

Submit = Callable[[Picture | Prepared, Executor | None], Awaitable[Served[Computed]]]

# what may happen to one picture of several without a fault of the others
IMAGE_ERRORS = (InvalidImage, InferenceFailed, Stopped)


class UnknownLabel(Exception):
    """A label was asked for that the model does not know; the message lists those it does."""


class TooManyImages(Exception):
    """The request holds more images than allowed."""


@dataclasses.dataclass(frozen=True)
class Filter:
    """Which detections a client wants: at most `limit`, of score `threshold` or more, of these class indices."""

    threshold: float
    limit: int
    labels: Sequence[int] | None = None  # None for all

    def select(self, found: Detections) -> Detections:
        """Returns the detections that pass; those given are sorted by falling score."""
        count = np.count_nonzero(found.scores >= self.threshold)
        if self.labels is None:
            return found.select(slice(min(count, self.limit)))
        of_labels = np.flatnonzero(np.isin(found.labels[:count], self.labels))
        return found.select(of_labels[: self.limit])


def build_filter(
    settings: Settings,
    metadata: Metadata,
    threshold: float | None = None,
    limit: int | None = None,
    labels: str | None = None,
) -> Filter:
    """Returns which of a model's detections are wanted, by the settings where nothing else is said.

    `labels` are separated by commas; raises `UnknownLabel`.
    """
    return Filter(
        settings.find_threshold(metadata) if threshold is None else threshold,
        settings.limit if limit is None else limit,
        None if labels is None else _find_labels(labels, metadata.labels),
    )


def _find_labels(wanted: str, known: Sequence[str]) -> list[int]:
    names = [name.strip() for name in wanted.split(",")]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UnknownLabel(f"unknown: {', '.join(map(repr, unknown))}; the model knows: {', '.join(known)}")
    return [known.index(name) for name in names]


@dataclasses.dataclass(frozen=True)
class DetectionResult:
    """What was found in one photo, in its own pixels, and where the time went."""

    detections: Detections
    letterbox: Letterbox
    decode_seconds: float
    queue_seconds: float
    inference_seconds: float


def check_count(images: int, settings: Settings) -> None:
    """Raises `TooManyImages` for more of them in one request than allowed."""
    most = min(settings.max_request_images, settings.max_queue)
    if images > most:
        raise TooManyImages(f"the request holds {images} images, and {most} are allowed")


@contextlib.contextmanager
def expect(model: ServedModel, timeout_seconds: float, arrival: Arrival | None = None) -> Iterator[Arrival]:
    """Lets a request's body arrive, and gives what `admit` is told of it; `DeadlineExceeded` ends the block.

    Raises `Overloaded` and `Stopped` before a body is read in vain, unless its `arrival` has been announced; but what
    has not arrived takes no place in the model's queue, so that slow clients keep nobody out.
    """
    with answered_within(timeout_seconds), model.batcher.admission.expect(timeout_seconds, arrival) as expected:
        yield expected


async def find_objects(service: Service, model: ServedModel, submit: Submit, picture: Picture, wanted: Filter) -> DetectionResult:
    """Takes one picture, an image file or RGB pixels (h, w, 3), all the way; raises `IMAGE_ERRORS`."""
    detector = model.detector
    served = await submit(picture, service.decoders if model.prepares_first else None)
    computed = served.result
    canvas, decode_started, decode_ended = computed.prepared
    detections = move_to_photo(wanted.select(computed.detections), canvas.letterbox)

    service.stages.note(model.name, "decode", decode_started, decode_ended)
    service.stages.note(model.name, "queue", served.queued, served.taken)
    service.stages.note(model.name, "inference", computed.started, computed.ended)
    for index, count in collections.Counter(detections.labels.tolist()).items():
        service.metrics.detections.labels(model.name, detector.metadata.labels[index]).inc(count)
    return DetectionResult(
        detections,
        canvas.letterbox,
        decode_ended - decode_started,
        served.queue_seconds,
        computed.ended - computed.started,
    )


async def find_objects_in_each(
    service: Service, model: ServedModel, submit: Submit, pictures: Sequence[Picture], wanted: Filter
) -> list[DetectionResult | Exception]:
    """Takes pictures the same way side by side; gives in their order what was found, or the picture's fault."""

    async def find(picture: Picture) -> DetectionResult | Exception:
        try:
            return await find_objects(service, model, submit, picture, wanted)
        except IMAGE_ERRORS as fault:
            return fault

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(find(picture)) for picture in pictures]
    return [task.result() for task in tasks]


@contextlib.contextmanager
def admit(
    service: Service,
    model: ServedModel,
    request: Request,
    timeout_seconds: float,
    images: int = 1,
    arrival: Arrival | None = None,
) -> Iterator[Submit]:
    """Holds a place in the model's queue for each of `images`, until the client hangs up; the body must have been read.

    It is their `arrival` where `expect` let them. Raises `TooManyImages`, `Stopped`, `ClientDisconnect`, and
    `Overloaded`, also where the queue is too long for the time.
    """
    check_count(images, service.settings)
    with model.batcher.admit(images, timeout_seconds, arrival) as submit, cancelled_on_disconnect(request):
        yield submit
