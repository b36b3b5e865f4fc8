"""The pipeline of an image, which every route uses: file or pixels → canvas → batch → boxes."""

import asyncio
import collections
import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from fastapi import Request

from app.inference.admission import Arrival, Stopped
from app.inference.batcher import InferenceFailed
from app.inference.served_model import Image, ServedModel
from app.requests.deadline import answered_within
from app.requests.disconnect import cancelled_on_disconnect
from app.service import Service
from app.settings import Settings
from model.detector import Detections, move_to_photo
from model.errors import UserError
from model.image import InvalidImage
from model.letterbox import Letterbox
from model.metadata import Metadata

# errors that concern one image of a request and leave the others unaffected
IMAGE_ERRORS = (InvalidImage, InferenceFailed, Stopped)


class UnknownLabel(UserError):
    """The request names a label that the model does not have; the message lists the known ones."""


class TooManyImages(Exception):
    """The request contains more images than allowed."""


@dataclasses.dataclass(frozen=True)
class Filter:
    """Selects at most `limit` detections with a score of at least `threshold`, of these class indices."""

    threshold: float
    limit: int
    labels: Sequence[int] | None = None  # None for all

    def select(self, found: Detections) -> Detections:
        """Returns the selected detections; `found` must be sorted by descending score."""
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
    labels: Sequence[str] | None = None,
) -> Filter:
    """Returns the filter for a model's detections, with the settings' defaults for what is None.

    Each of `labels` is a label, or several separated by commas; raises `UnknownLabel`.
    """
    return Filter(
        settings.find_threshold(metadata) if threshold is None else threshold,
        settings.limit if limit is None else limit,
        None if labels is None else _find_labels(labels, metadata.labels),
    )


def _find_labels(wanted: Sequence[str], known: Sequence[str]) -> list[int]:
    # a label may itself contain commas
    names = [
        name for each in wanted for name in ([each] if each in known else [part.strip() for part in each.split(",")])
    ]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UnknownLabel(f"unknown: {', '.join(map(repr, unknown))}; the model knows: {', '.join(known)}")
    return [known.index(name) for name in names]


@dataclasses.dataclass(frozen=True)
class DetectionResult:
    """The detections of one image, in pixels of the original image, and the time that each stage took."""

    detections: Detections
    letterbox: Letterbox
    decode_seconds: float
    queue_seconds: float
    inference_seconds: float


def check_count(images: int, settings: Settings) -> None:
    """Raises `TooManyImages` if one request contains more images than allowed."""
    maximum = min(settings.max_request_images, settings.max_queue)
    if images > maximum:
        raise TooManyImages(f"the request holds {images} images, and {maximum} are allowed")


@contextlib.contextmanager
def expect(model: ServedModel, timeout_seconds: float, arrival: Arrival | None = None) -> Iterator[Arrival]:
    """Enforces the deadline in its block and checks admission before the body is read; yields the arrival for `admit`.

    Raises `Overloaded` and `Stopped` at once rather than after a useless upload, unless an `arrival` was announced
    before; raises `DeadlineExceeded`. An unfinished upload takes no slot in the queue, so slow clients block nobody.
    """
    with answered_within(timeout_seconds), model.batcher.admission.expect(timeout_seconds, arrival) as expected:
        yield expected


async def find_objects(service: Service, model: ServedModel, image: Image, wanted: Filter) -> DetectionResult:
    """Detects objects in one admitted image, a file or RGB pixels (h, w, 3); raises `IMAGE_ERRORS`."""
    detector = model.detector
    served = await model.batcher.submit(image, service.decoders if model.prepares_first else None)
    computed = served.result
    canvas, decode_started, decode_ended = computed.prepared
    detections = move_to_photo(wanted.select(computed.detections), canvas.letterbox)

    service.stages.record(model.name, "decode", decode_started, decode_ended)
    service.stages.record(model.name, "queue", served.queued, served.dequeued)
    service.stages.record(model.name, "inference", computed.started, computed.ended)
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
    service: Service, model: ServedModel, images: Sequence[Image], wanted: Filter
) -> list[DetectionResult | Exception]:
    """Detects objects in several admitted images concurrently; returns for each, in order, its result or its error."""

    async def find(image: Image) -> DetectionResult | Exception:
        try:
            return await find_objects(service, model, image, wanted)
        except IMAGE_ERRORS as error:
            return error

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(find(image)) for image in images]
    return [task.result() for task in tasks]


@contextlib.contextmanager
def admit(
    service: Service,
    model: ServedModel,
    request: Request,
    timeout_seconds: float,
    images: int = 1,
    arrival: Arrival | None = None,
) -> Iterator[None]:
    """Holds a slot in the model's queue for each image during its block.

    The body must have been read; `arrival` comes from `expect`. A client's disconnect cancels the block. Raises
    `ClientDisconnect`, `TooManyImages`, `Stopped`, and `Overloaded`, also if the queue is too long for the timeout.
    """
    check_count(images, service.settings)
    with model.batcher.admission.admit(images, timeout_seconds, arrival), cancelled_on_disconnect(request):
        yield
