"""Runs an exported model over photos: the one way from bytes to boxes. Free of torch."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from model import image
from model.bound_session import BoundSession
from model.canvas import Canvas, Canvases, prepare
from model.gpu import Gpu, GpuProvider, Provider, ProviderUnavailable, open_on_gpu
from model.letterbox import Letterbox
from model.metadata import InvalidModel, Metadata
from model.session import open_session
from model.shapes import list_shapes

_OUTPUTS = {"boxes": "tensor(float)", "scores": "tensor(float)", "labels": "tensor(int64)"}
_KEYPOINTS = {"keypoints": "tensor(float)"}  # as well, where the metadata names joints

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Detections:
    """One photo's boxes (N, 4) in pixels, scores (N,) falling, and class indices (N,).

    `keypoints` (N, J, 3) are x and y in pixels and a score, 0 to 1, where the model knows joints.
    """

    boxes_xyxy: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    keypoints: NDArray[np.float32] | None = None

    def select(self, keep: slice | NDArray[np.bool_] | NDArray[np.int64]) -> "Detections":
        """Returns the rows of the slice, those where `keep` (N,) is true, or those of these indices."""
        keypoints = None if self.keypoints is None else self.keypoints[keep]
        return Detections(self.boxes_xyxy[keep], self.scores[keep], self.labels[keep], keypoints)


class Detector:
    """An exported model in an ONNX Runtime session on the provider asked for; "auto" is CUDA if it works, or the CPU.

    `metadata` is what the file says of itself, `provider` ("cpu", "cuda" or "tensorrt") where it really runs, `shapes`
    what it is given photos in, the smallest first, and `most_detections` how many rows it gives for one photo; `path`
    is its file. A GPU is given all photos in one shape: batches fill, and it needs a session for each size of them.
    `threads` are the CPU's, default all. Raises `InvalidModel`, naming the file, and `ProviderUnavailable`.
    """

    def __init__(
        self, path: Path, provider: Provider = "auto", threads: int | None = None, gpu: Gpu | None = None
    ) -> None:
        gpu = gpu or Gpu()
        gpu.check(provider)
        self.path = path
        self.provider: Literal["cpu", GpuProvider] = "cpu"
        self._session: ort.InferenceSession | BoundSession = open_session(path, threads)
        self._smaller: dict[int, ort.InferenceSession | BoundSession] = {}
        session = self._session
        try:
            self.metadata = Metadata.from_properties(session.get_modelmeta().custom_metadata_map)
            self.shapes = list_shapes(self.metadata.input_height, self.metadata.input_width, self.metadata.size_step)
            self.most_detections = _check_graph(session, self.metadata)
            self._outputs = list(_agreed_outputs(self.metadata))
        except InvalidModel as error:
            raise InvalidModel(f"{path}: {error}") from error
        if provider == "cpu":
            return
        wanted: GpuProvider = "tensorrt" if provider == "tensorrt" else "cuda"
        blank = np.zeros((*self.shapes[-1], 3), np.uint8)
        try:
            self._session = open_on_gpu(path, wanted, session, blank, threads, gpu)
            self.provider, self.shapes = wanted, self.shapes[-1:]
        except ProviderUnavailable as error:
            if provider != "auto":
                raise
            logger.log(logging.WARNING if gpu.cuda_graphs else logging.INFO, "running on the CPU: %s", error)

    def prepare(self, picture: bytes | NDArray[np.uint8], max_pixels: int = image.MAX_PIXELS) -> Canvas:
        """Letterboxes one image file, or RGB pixels (h, w, 3); raises `InvalidImage`."""
        return prepare(picture, self.shapes, max_pixels)

    def open_with(self, threads: int) -> None:
        """Readies `infer` for batches that have fewer of the CPU's threads, as several side by side should.

        On a GPU the threads make no difference, and batches side by side share its session.
        """
        self._smaller[threads] = open_session(self.path, threads) if self.provider == "cpu" else self._session

    def give_back(self, canvas: NDArray[np.uint8], threads: int | None) -> None:
        """Keeps what `infer` needs with all `threads` or with so many, and gives back what `open_with` took for others.

        On the CPU alone. Runs one canvas to give back the memory that larger batches have needed; ORT would keep it.
        """
        self._smaller = {threads: self._smaller[threads]} if threads else {}
        options = ort.RunOptions()
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        for session in (self._session, *self._smaller.values()):
            assert isinstance(session, ort.InferenceSession)
            session.run(self._outputs, {"images": canvas[None]}, options)

    def infer(self, canvases: Canvases, threads: int | None = None) -> list[Detections]:
        """Runs canvases, those of one shape as one batch; the boxes are still in input pixels.

        `threads` are all, or a number that `open_with` has prepared for.
        """
        session = self._smaller[threads] if threads else self._session
        of_shape: dict[tuple[int, ...], list[int]] = {}
        for index, canvas in enumerate(canvases):
            of_shape.setdefault(canvas.shape, []).append(index)
        found: dict[int, Detections] = {}
        for indices in of_shape.values():
            outputs = _run(session, self._outputs, [canvases[index] for index in indices])
            for index, *rows in zip(indices, *outputs, strict=True):
                every = Detections(*rows)
                found[index] = every.select(slice(np.count_nonzero(every.scores)))  # rows of score 0 are unused
        return [found[index] for index in range(len(canvases))]

    def detect(self, files: Sequence[bytes], max_pixels: int = image.MAX_PIXELS) -> list[Detections]:
        """Finds objects in image files, run as one batch of each shape: no threshold, in photo pixels."""
        prepared = [self.prepare(data, max_pixels) for data in files]
        found = self.infer([one.pixels for one in prepared])
        return [move_to_photo(rows, one.letterbox) for rows, one in zip(found, prepared, strict=True)]


def move_to_photo(found: Detections, placed: Letterbox) -> Detections:
    """Moves boxes and joints from input pixels to the photo's; boxes are clipped to it, joints may lie outside."""
    keypoints = found.keypoints
    if keypoints is not None:
        keypoints = np.concatenate([placed.points_to_photo(keypoints[..., :2]), keypoints[..., 2:]], axis=-1)
    return dataclasses.replace(found, boxes_xyxy=placed.to_photo(found.boxes_xyxy), keypoints=keypoints)


def _run(session: ort.InferenceSession | BoundSession, names: Sequence[str], canvases: Canvases) -> Any:
    if isinstance(session, BoundSession):
        return session.infer(names, canvases)
    return session.run(names, {"images": np.stack(canvases)})


def _agreed_outputs(metadata: Metadata) -> dict[str, str]:
    return _OUTPUTS | (_KEYPOINTS if metadata.skeleton.joints else {})


def _check_graph(session: ort.InferenceSession, metadata: Metadata) -> int:
    """Returns how many rows the graph gives for each photo; raises `InvalidModel` where it is not as agreed."""
    inputs = {each.name: each for each in session.get_inputs()}
    outputs = {each.name: each for each in session.get_outputs()}
    if set(inputs) != {"images"} or inputs["images"].type != "tensor(uint8)":
        raise InvalidModel(f"its inputs are {_describe(inputs)}, not one `images` of uint8")
    batch, *size = inputs["images"].shape
    agreed_size = [metadata.input_height, metadata.input_width, 3]
    if metadata.size_step:
        if any(isinstance(length, int) for length in size[:2]) or size[2:] != [3]:
            raise InvalidModel(f"its images are {size} and its metadata says any multiples of {metadata.size_step}")
        if any(length % metadata.size_step for length in agreed_size[:2]):
            raise InvalidModel(f"its metadata says {agreed_size}, and multiples of {metadata.size_step}")
    elif size != agreed_size:
        raise InvalidModel(f"its images are {size} and its metadata says {agreed_size}")
    if isinstance(batch, int):
        raise InvalidModel(f"it takes batches of {batch} alone: export it with a dynamic batch")
    agreed = _agreed_outputs(metadata)
    if {name: each.type for name, each in outputs.items()} != agreed:
        raise InvalidModel(f"its outputs are {_describe(outputs)}, not {agreed}")
    rows = outputs["scores"].shape[1]
    if not isinstance(rows, int) or outputs["boxes"].shape[1:] != [rows, 4] or outputs["labels"].shape[1:] != [rows]:
        raise InvalidModel("its outputs do not give the same fixed number of boxes, scores and labels")
    if "keypoints" in outputs and outputs["keypoints"].shape[1:] != [rows, len(metadata.skeleton.joints), 3]:
        raise InvalidModel(
            f"its keypoints are {outputs['keypoints'].shape[1:]} for each photo, not {rows} times the"
            f" {len(metadata.skeleton.joints)} joints that its metadata names"
        )
    return rows


def _describe(values: dict[str, ort.NodeArg]) -> dict[str, str]:
    return {name: f"{each.type} {each.shape}" for name, each in values.items()}
