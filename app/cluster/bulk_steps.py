"""The steps of batch inference in Ray Data: tasks read and decode photos, actors run the model."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import fs

from app.answers import describe_detections
from app.cluster.storage import ORIGIN
from app.errors import PROBLEM_KINDS
from app.pipeline import Filter
from app.requests.body import BodyTooLarge, EmptyBody, check_file_size
from model.canvas import prepare
from model.detector import Detections, Detector, move_to_photo
from model.gpu import Provider
from model.image import InvalidImage, quieten_decoders
from model.letterbox import Letterbox, place
from model.metadata import Metadata
from model.shapes import Shape

Batch = dict[str, NDArray[Any]]

_PHOTO_ERRORS = (EmptyBody, BodyTooLarge, InvalidImage, OSError)


@dataclasses.dataclass(frozen=True)
class ReadPhotos:
    """Reads N photos by name and prepares the network's input.

    Adds `pixels` (N, H, W, 3), uint8, and each photo's `width` and `height`. H and W are those of the last of `shapes`;
    a photo of a smaller shape occupies the upper left corner. For a photo that cannot be read, width and height are 0,
    and `problem` and `detail` say why. The photos are sorted by shape, so that each shape is computed in one batch.
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
        problems = np.full((2, count), "", object)
        for at, file in enumerate(batch["file"]):
            try:
                canvas = prepare(self._read(file), self.shapes, self.max_pixels)
            except _PHOTO_ERRORS as error:
                kind = PROBLEM_KINDS.get(type(error))
                problems[:, at] = kind.reason if kind else "unreadable-file", str(error)
            else:
                shapes[:, at] = height, width = canvas.letterbox.shape
                pixels[at, :height, :width] = canvas.pixels
                sizes[:, at] = canvas.letterbox.photo_width, canvas.letterbox.photo_height
        names = ("width", "height", "problem", "detail")
        read = batch | {"pixels": pixels} | dict(zip(names, (*sizes, *problems), strict=True))
        order = np.lexsort(shapes)
        return {name: column[order] for name, column in read.items()}

    def _read(self, file: str) -> bytes:
        with self.filesystem.open_input_file(file.removeprefix(self.prefix)) as stream:
            check_file_size(stream.size(), self.max_bytes)
            data: bytes = stream.read()
            return data


class FindObjects:
    """Runs the model on batches from `ReadPhotos` with the same `shapes`; returns rows of the schema `make_schema`."""

    def __init__(self, model: Path, provider: Provider, threads: int, wanted: Filter, shapes: Sequence[Shape]) -> None:
        self._detector = Detector(model, provider, threads)
        self._wanted = wanted
        self._shapes = shapes
        self._schema = make_schema(self._detector.metadata, wanted)

    def __call__(self, batch: Batch) -> pa.Table:
        """Computes one batch; skips photos with a problem."""
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

    def _describe(self, letterbox: Letterbox, found: Detections) -> dict[str, object]:
        selected = move_to_photo(self._wanted.select(found), letterbox)
        detections = [each | each["box"] for each in describe_detections(self._detector.metadata, selected)]
        return {"width": letterbox.photo_width, "height": letterbox.photo_height, "detections": detections}


def describe_origin(metadata: Metadata, wanted: Filter) -> str:
    """Returns in words what a row depends on besides its photo."""
    labels = "all labels"
    if wanted.labels is not None:
        labels = "labels " + ", ".join(metadata.labels[index] for index in sorted(set(wanted.labels)))
    return f"model {metadata.name}, threshold {wanted.threshold}, limit {wanted.limit}, {labels}"


def make_schema(metadata: Metadata, wanted: Filter) -> pa.Schema:
    """Returns the schema of the Parquet files: one row per photo, with a list of detections or a problem."""
    edges = [pa.field(name, pa.float32()) for name in ("x_min", "y_min", "x_max", "y_max")]
    detection = [pa.field("label", pa.string()), pa.field("label_id", pa.int64()), pa.field("score", pa.float32())]
    detection += edges
    if metadata.skeleton.joints:
        position = [pa.field(name, pa.float32()) for name in ("x", "y", "score")]
        detection.append(pa.field("keypoints", pa.list_(pa.struct([pa.field("name", pa.string()), *position]))))
    return pa.schema(
        {
            "file": pa.string(),
            "model": pa.string(),
            "width": pa.int32(),
            "height": pa.int32(),
            "detections": pa.list_(pa.struct(detection)),
            "problem": pa.string(),
            "detail": pa.string(),
        },
        {ORIGIN: describe_origin(metadata, wanted)},
    )
