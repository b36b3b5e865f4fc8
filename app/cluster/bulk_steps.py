"""What Ray Data does with each batch of photos: reads and decodes them in tasks, finds objects in actors."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import fs

from app.answers import describe_detections
from app.body import BodyTooLarge, EmptyBody, check_file_size
from app.errors import PROBLEM_KINDS
from app.pipeline import Filter
from model.canvas import prepare
from model.detector import Detections, Detector, move_to_photo
from model.gpu import Provider
from model.image import InvalidImage, quieten_decoders
from model.letterbox import Letterbox, place
from model.metadata import Metadata
from model.shapes import Shape

Batch = dict[str, NDArray[Any]]

_FAULTS = (EmptyBody, BodyTooLarge, InvalidImage, OSError)


@dataclasses.dataclass(frozen=True)
class ReadPhotos:
    """Makes of the names of N photos what the network takes.

    Gives `pixels` (N, H, W, 3), uint8, H and W those of the last of `shapes`, in whose upper left corner each photo has
    its own shape, and each photo's `width` and `height`. Where a photo cannot be read these are 0, and `problem` and
    `detail` say why. Photos of one shape come one after the other, so that they are computed in one batch.
    """

    filesystem: fs.FileSystem
    prefix: str
    shapes: Sequence[Shape]
    max_bytes: int
    max_pixels: int

    def __call__(self, batch: Batch) -> Batch:
        """Reads one batch."""
        quieten_decoders()
        count = len(batch["file"])
        pixels = np.zeros((count, *self.shapes[-1], 3), np.uint8)
        shapes = np.zeros((2, count), np.int32)
        sizes = np.zeros((2, count), np.int32)
        faults = np.full((2, count), "", object)
        for at, file in enumerate(batch["file"]):
            try:
                canvas = prepare(self._read(file), self.shapes, self.max_pixels)
            except _FAULTS as fault:
                kind = PROBLEM_KINDS.get(type(fault))
                faults[:, at] = kind.reason if kind else "unreadable-file", str(fault)
            else:
                shapes[:, at] = height, width = canvas.letterbox.shape
                pixels[at, :height, :width] = canvas.pixels
                sizes[:, at] = canvas.letterbox.photo_width, canvas.letterbox.photo_height
        names = ("width", "height", "problem", "detail")
        read = batch | {"pixels": pixels} | dict(zip(names, (*sizes, *faults), strict=True))
        order = np.lexsort(shapes)
        return {name: column[order] for name, column in read.items()}

    def _read(self, file: str) -> bytes:
        with self.filesystem.open_input_file(file.removeprefix(self.prefix)) as stream:
            check_file_size(stream.size(), self.max_bytes)
            data: bytes = stream.read()
            return data


class FindObjects:
    """Holds a session, and makes rows as `make_schema` has them of what `ReadPhotos` gives in the same `shapes`."""

    def __init__(self, model: Path, provider: Provider, threads: int, wanted: Filter, shapes: Sequence[Shape]) -> None:
        self._detector = Detector(model, provider, threads)
        self._wanted = wanted
        self._shapes = shapes
        self._schema = make_schema(self._detector.metadata)

    def __call__(self, batch: Batch) -> pa.Table:
        """Computes one batch; a photo with a problem costs nothing."""
        placed = [
            None if problem else place(width, height, self._shapes)
            for width, height, problem in zip(batch["width"], batch["height"], batch["problem"], strict=True)
        ]
        canvases = [
            pixels[: letterbox.shape[0], : letterbox.shape[1]]
            for pixels, letterbox in zip(batch["pixels"], placed, strict=True)
            if letterbox
        ]
        found = iter(self._detector.infer(canvases))
        rows = [
            {"file": file, "model": self._detector.metadata.name}
            | (self._describe(letterbox, next(found)) if letterbox else {"problem": problem, "detail": detail})
            for file, letterbox, problem, detail in zip(
                batch["file"], placed, batch["problem"], batch["detail"], strict=True
            )
        ]
        return pa.Table.from_pylist(rows, self._schema)

    def _describe(self, placed: Letterbox, found: Detections) -> dict[str, object]:
        finished = move_to_photo(self._wanted.select(found), placed)
        detections = [each | each["box"] for each in describe_detections(self._detector.metadata, finished)]
        return {"width": placed.photo_width, "height": placed.photo_height, "detections": detections}


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
