"""What Ray Data does with each batch of photos: reads and decodes them in tasks, finds objects in actors."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import fs

from app.answers import describe_detections
from app.body import BodyTooLarge, EmptyBody
from app.errors import KINDS
from app.pipeline import Filter
from app.service import quieten_decoders
from model.canvas import prepare
from model.detector import Detections, Detector
from model.image import BrokenImage, TooManyPixels, UnknownFormat
from model.letterbox import place
from model.metadata import Metadata
from model.session import Provider

Batch = dict[str, NDArray[Any]]

_FAULTS = (EmptyBody, BodyTooLarge, UnknownFormat, TooManyPixels, BrokenImage, OSError)


@dataclasses.dataclass(frozen=True)
class ReadPhotos:
    """Makes of the names of N photos what the network takes.

    Gives `pixels` (N, input height, input width, 3), uint8, and each photo's `width` and `height`. Where a photo cannot
    be read these are 0, and `problem` and `detail` say why.
    """

    filesystem: fs.FileSystem
    prefix: str
    input_height: int
    input_width: int
    max_bytes: int
    max_pixels: int

    def __call__(self, batch: Batch) -> Batch:
        """Reads one batch."""
        quieten_decoders()
        count = len(batch["file"])
        pixels = np.zeros((count, self.input_height, self.input_width, 3), np.uint8)
        sizes = np.zeros((2, count), np.int32)
        faults = np.full((2, count), "", object)
        for at, file in enumerate(batch["file"]):
            try:
                canvas = prepare(self._read(file), self.input_height, self.input_width, self.max_pixels)
            except _FAULTS as fault:
                kind = KINDS.get(type(fault))
                faults[:, at] = kind.reason if kind else "unreadable-file", str(fault)
            else:
                pixels[at] = canvas.pixels
                sizes[:, at] = canvas.letterbox.photo_width, canvas.letterbox.photo_height
        names = ("width", "height", "problem", "detail")
        return batch | {"pixels": pixels} | dict(zip(names, (*sizes, *faults), strict=True))

    def _read(self, file: str) -> bytes:
        with self.filesystem.open_input_file(file.removeprefix(self.prefix)) as stream:
            size = stream.size()
            if size > self.max_bytes:
                raise BodyTooLarge(f"the file is longer than {self.max_bytes} bytes")
            if not size:
                raise EmptyBody("the file is empty")
            data: bytes = stream.read()
            return data


class FindObjects:
    """Holds a session, and makes rows as `make_schema` has them of what `ReadPhotos` gives."""

    def __init__(self, model: Path, provider: Provider, threads: int, wanted: Filter) -> None:
        self._detector = Detector(model, provider, threads)
        self._wanted = wanted
        self._schema = make_schema(self._detector.metadata)

    def __call__(self, batch: Batch) -> pa.Table:
        """Computes one batch; a photo with a problem costs nothing."""
        canvases = list(batch["pixels"][batch["problem"] == ""])
        found = iter(self._detector.infer(canvases) if canvases else ())
        names = ("file", "width", "height", "problem", "detail")
        photos = [
            dict(zip(names, values, strict=True)) for values in zip(*(batch[name] for name in names), strict=True)
        ]
        rows = [self._describe(**photo, found=None if photo["problem"] else next(found)) for photo in photos]
        return pa.Table.from_pylist(rows, self._schema)

    def _describe(
        self, file: str, width: int, height: int, problem: str, detail: str, found: Detections | None
    ) -> dict[str, object]:
        metadata = self._detector.metadata
        row: dict[str, object] = {"file": file, "model": metadata.name}
        if found is None:
            return row | {"problem": problem, "detail": detail}
        placed = place(width, height, metadata.input_width, metadata.input_height)
        finished = self._detector.finish(self._wanted.select(found), placed)
        detections = [each | each["box"] for each in describe_detections(metadata, finished)]
        return row | {"width": width, "height": height, "detections": detections}


def make_schema(metadata: Metadata) -> pa.Schema:
    """Returns the columns that are written: a row for each photo, its objects in a list, or its problem."""
    edges = [pa.field(name, pa.float32()) for name in ("x_min", "y_min", "x_max", "y_max")]
    detection = [pa.field("label", pa.string()), pa.field("label_id", pa.int64()), pa.field("score", pa.float32())]
    detection += edges
    if metadata.skeleton.joints:
        place_of_joint = [pa.field(name, pa.float32()) for name in ("x", "y", "score")]
        detection.append(pa.field("keypoints", pa.list_(pa.struct([pa.field("name", pa.string()), *place_of_joint]))))
    return pa.schema(
        {
            "file": pa.string(),
            "model": pa.string(),
            "width": pa.int32(),
            "height": pa.int32(),
            "detections": pa.list_(pa.struct(detection)),
            "problem": pa.string(),
            "detail": pa.string(),
        }
    )
