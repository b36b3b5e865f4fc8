"""Runs an exported model over photos: the one way from bytes to boxes. Free of torch."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from model import image
from model.canvas import Canvas, prepare
from model.letterbox import Letterbox
from model.metadata import InvalidModel, Metadata
from model.session import Provider, open_session

_OUTPUTS = {"boxes": "tensor(float)", "scores": "tensor(float)", "labels": "tensor(int64)"}


@dataclasses.dataclass(frozen=True)
class Detections:
    """One photo's boxes (N, 4) in pixels, scores (N,) falling, and class indices (N,)."""

    boxes_xyxy: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]

    def select(self, keep: NDArray[np.bool_]) -> "Detections":
        """Returns the rows where `keep` (N,) is true."""
        return Detections(self.boxes_xyxy[keep], self.scores[keep], self.labels[keep])


class Detector:
    """An exported model in an ONNX Runtime session.

    `metadata` is what the file says of itself, `provider` ("cpu" or "cuda") where it really runs, and `most_detections`
    how many rows it gives for one photo; `path` is its file. Raises `InvalidModel`, naming the file, and
    `ProviderUnavailable`.
    """

    def __init__(self, path: Path, provider: Provider = "auto", threads: int | None = None) -> None:
        self.path = path
        self._session = open_session(path, provider, threads)
        self.provider = "cuda" if "CUDAExecutionProvider" in self._session.get_providers() else "cpu"
        try:
            self.metadata = Metadata.from_properties(self._session.get_modelmeta().custom_metadata_map)
            self.most_detections = _check_graph(self._session, self.metadata)
        except InvalidModel as error:
            raise InvalidModel(f"{path}: {error}") from error

    def prepare(self, picture: bytes | NDArray[np.uint8], max_pixels: int = image.MAX_PIXELS) -> Canvas:
        """Letterboxes one image file, or RGB pixels (h, w, 3); raises what `model.image` raises."""
        return prepare(picture, self.metadata.input_height, self.metadata.input_width, max_pixels)

    def infer(self, canvases: Sequence[NDArray[np.uint8]]) -> list[Detections]:
        """Runs canvases as one batch; the boxes are still in input pixels. A score of 0 marks an unused row."""
        outputs = self._session.run(list(_OUTPUTS), {"images": np.stack(canvases)})
        found = [Detections(*rows) for rows in zip(*outputs, strict=True)]
        return [rows.select(rows.scores > 0) for rows in found]

    def finish(self, found: Detections, placed: Letterbox) -> Detections:
        """Moves boxes from input pixels to the photo's, clipped to it."""
        return dataclasses.replace(found, boxes_xyxy=placed.to_photo(found.boxes_xyxy))

    def detect(self, files: Sequence[bytes], max_pixels: int = image.MAX_PIXELS) -> list[Detections]:
        """Finds objects in image files, run as one batch: no threshold, in photo pixels."""
        prepared = [self.prepare(data, max_pixels) for data in files]
        found = self.infer([one.pixels for one in prepared])
        return [self.finish(rows, one.letterbox) for rows, one in zip(found, prepared, strict=True)]


def _check_graph(session: ort.InferenceSession, metadata: Metadata) -> int:
    """Returns how many rows the graph gives for each photo; raises `InvalidModel` where it is not as agreed."""
    inputs = {each.name: each for each in session.get_inputs()}
    outputs = {each.name: each for each in session.get_outputs()}
    if set(inputs) != {"images"} or inputs["images"].type != "tensor(uint8)":
        raise InvalidModel(f"its inputs are {_describe(inputs)}, not one `images` of uint8")
    batch, *size = inputs["images"].shape
    if size != [metadata.input_height, metadata.input_width, 3]:
        raise InvalidModel(
            f"its images are {size} and its metadata says {[metadata.input_height, metadata.input_width, 3]}"
        )
    if isinstance(batch, int):
        raise InvalidModel(f"it takes batches of {batch} alone: export it with a dynamic batch")
    if {name: each.type for name, each in outputs.items()} != _OUTPUTS:
        raise InvalidModel(f"its outputs are {_describe(outputs)}, not {_OUTPUTS}")
    rows = outputs["scores"].shape[1]
    if not isinstance(rows, int) or outputs["boxes"].shape[1:] != [rows, 4] or outputs["labels"].shape[1:] != [rows]:
        raise InvalidModel("its outputs do not give the same fixed number of boxes, scores and labels")
    return rows


def _describe(values: dict[str, ort.NodeArg]) -> dict[str, str]:
    return {name: f"{each.type} {each.shape}" for name, each in values.items()}
