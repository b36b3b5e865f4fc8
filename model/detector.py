"""Runs an exported model on images, from bytes to boxes."""

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
_KEYPOINTS = {"keypoints": "tensor(float)"}  # additional, if the metadata names joints

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Detections:
    """One image's boxes (N, 4) in pixels, scores (N,) in descending order, and class indices (N,).

    `keypoints` (N, J, 3) are x and y in pixels and a score, 0 to 1, if the model predicts joints.
    """

    boxes_xyxy: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    keypoints: NDArray[np.float32] | None = None

    def select(self, keep: slice | NDArray[np.bool_] | NDArray[np.int64]) -> "Detections":
        """Returns the rows that `keep` selects: a slice, a mask (N,), or indices."""
        keypoints = None if self.keypoints is None else self.keypoints[keep]
        return Detections(self.boxes_xyxy[keep], self.scores[keep], self.labels[keep], keypoints)

    def without_padding(self) -> "Detections":
        """Returns the rows before those of score 0, which a network outputs where it has no more peaks."""
        return self.select(slice(np.count_nonzero(self.scores)))


class Detector:
    """An exported model in ONNX Runtime sessions on `provider`; "auto" is CUDA if it works, otherwise the CPU.

    `path` is the model's file and `signature` its state before it was opened, `metadata` what is stored in it,
    `provider` where it really runs ("cpu", "cuda" or "tensorrt"), `max_detections` the most that it finds in an image,
    and `shapes` the input shapes that images are letterboxed to, the smallest first. On a GPU there is only the largest
    shape, so that batches fill up, and because each batch size needs a session of its own.
    `threads` are CPU threads, by default all. Raises `InvalidModel`, naming the file, and `ProviderUnavailable`.
    """

    def __init__(
        self, path: Path, provider: Provider = "auto", threads: int | None = None, gpu: Gpu | None = None
    ) -> None:
        gpu = gpu or Gpu()
        gpu.check(provider)
        self.path, self.signature = path, read_signature(path)
        self.provider: Literal["cpu", GpuProvider] = "cpu"
        self._run_options = ort.RunOptions()  # of all inferences, so that `stop` ends them together
        self._session: ort.InferenceSession | BoundSession = open_session(path, threads)
        self._sessions_by_threads: dict[int, ort.InferenceSession | BoundSession] = {}  # with fewer threads
        session = self._session
        try:
            self.metadata = Metadata.from_properties(session.get_modelmeta().custom_metadata_map)
            self.shapes = list_shapes(self.metadata.input_height, self.metadata.input_width, self.metadata.size_step)
            self.max_detections = _check_graph(session, self.metadata)
            self._outputs = list(_expected_outputs(self.metadata))
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
        """Letterboxes an image file or RGB pixels (h, w, 3); raises `InvalidImage`."""
        return prepare(picture, self.shapes, max_pixels)

    def add_session(self, threads: int) -> None:
        """Opens a CPU session with `threads` threads for `infer`, so that several batches can run in parallel.

        On a GPU the number of threads makes no difference, and parallel batches share one session.
        """
        self._sessions_by_threads[threads] = (
            open_session(self.path, threads) if self.provider == "cpu" else self._session
        )

    def release_unused(self, canvas: NDArray[np.uint8], threads: int | None) -> None:
        """Closes the sessions of `add_session` other than that for `threads`, and shrinks the memory arenas. CPU only.

        Runs `canvas` through each session: arenas, which have grown with larger batches, shrink only after a run.
        """
        self._sessions_by_threads = {threads: self._sessions_by_threads[threads]} if threads else {}
        options = ort.RunOptions()
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        for session in (self._session, *self._sessions_by_threads.values()):
            assert isinstance(session, ort.InferenceSession)
            session.run(self._outputs, {"images": canvas[None]}, options)

    def infer(self, canvases: Canvases, threads: int | None = None) -> list[Detections]:
        """Runs canvases, one batch for each shape among them; returns boxes in input pixels.

        `threads` is a number for which `add_session` has opened a session; None uses all.
        """
        session = self._sessions_by_threads[threads] if threads else self._session
        indices_by_shape: dict[tuple[int, ...], list[int]] = {}
        for index, canvas in enumerate(canvases):
            indices_by_shape.setdefault(canvas.shape, []).append(index)
        found: dict[int, Detections] = {}
        for indices in indices_by_shape.values():
            outputs = self._run(session, [canvases[index] for index in indices])
            for index, *rows in zip(indices, *outputs, strict=True):
                found[index] = Detections(*rows).without_padding()
        return [found[index] for index in range(len(canvases))]

    def stop(self) -> None:
        """Makes `infer` raise from now on; on a CPU, calls that are running raise at their next operator."""
        self._run_options.terminate = True

    def detect(self, files: Sequence[bytes], max_pixels: int = image.MAX_PIXELS) -> list[Detections]:
        """Detects objects in image files, one batch per input shape; boxes in photo pixels, without a threshold."""
        prepared = [self.prepare(data, max_pixels) for data in files]
        found = self.infer([canvas.pixels for canvas in prepared])
        return [move_to_photo(rows, canvas.letterbox) for rows, canvas in zip(found, prepared, strict=True)]

    def _run(self, session: ort.InferenceSession | BoundSession, canvases: Canvases) -> Any:
        if isinstance(session, ort.InferenceSession):
            return session.run(self._outputs, {"images": np.stack(canvases)}, self._run_options)
        if self._run_options.terminate:  # a batch takes a GPU so little time that it may complete
            raise RuntimeError(f"{self.metadata.name} has been stopped")
        return session.infer(self._outputs, canvases)


def read_signature(path: Path) -> tuple[int, ...]:
    """Returns values that change when the file is written or replaced; empty if it cannot be read."""
    try:
        state = path.stat()
    except OSError:
        return ()
    return (state.st_mtime_ns, state.st_size, state.st_ino)


def move_to_photo(found: Detections, letterbox: Letterbox) -> Detections:
    """Converts boxes and joints from input pixels to photo pixels; boxes are clipped to the photo, joints are not."""
    keypoints = found.keypoints
    if keypoints is not None:
        keypoints = np.concatenate([letterbox.points_to_photo(keypoints[..., :2]), keypoints[..., 2:]], axis=-1)
    return dataclasses.replace(found, boxes_xyxy=letterbox.to_photo(found.boxes_xyxy), keypoints=keypoints)


def _expected_outputs(metadata: Metadata) -> dict[str, str]:
    return _OUTPUTS | (_KEYPOINTS if metadata.skeleton.joints else {})


def _check_graph(session: ort.InferenceSession, metadata: Metadata) -> int:
    """Returns how many detections the graph outputs for each image.

    Raises `InvalidModel` if its inputs or outputs differ from the metadata or from `DetectionGraph`'s.
    """
    inputs = {each.name: each for each in session.get_inputs()}
    outputs = {each.name: each for each in session.get_outputs()}
    if set(inputs) != {"images"} or inputs["images"].type != "tensor(uint8)":
        raise InvalidModel(f"its inputs are {_describe(inputs)}, not one `images` of uint8")
    batch, *size = inputs["images"].shape
    expected_size = [metadata.input_height, metadata.input_width, 3]
    if metadata.size_step:
        if any(isinstance(length, int) for length in size[:2]) or size[2:] != [3]:
            raise InvalidModel(f"its images are {size} and its metadata says any multiples of {metadata.size_step}")
        if any(length % metadata.size_step for length in expected_size[:2]):
            raise InvalidModel(f"its metadata says {expected_size}, and multiples of {metadata.size_step}")
    elif size != expected_size:
        raise InvalidModel(f"its images are {size} and its metadata says {expected_size}")
    if isinstance(batch, int):
        raise InvalidModel(f"it takes batches of {batch} alone: export it with a dynamic batch")
    expected = _expected_outputs(metadata)
    if {name: each.type for name, each in outputs.items()} != expected:
        raise InvalidModel(f"its outputs are {_describe(outputs)}, not {expected}")
    rows = outputs["scores"].shape[1]
    if not isinstance(rows, int) or outputs["boxes"].shape[1:] != [rows, 4] or outputs["labels"].shape[1:] != [rows]:
        raise InvalidModel("its outputs do not give the same fixed number of boxes, scores and labels")
    if "keypoints" in outputs and outputs["keypoints"].shape[1:] != [rows, len(metadata.skeleton.joints), 3]:
        raise InvalidModel(
            f"its keypoints are {outputs['keypoints'].shape[1:]} for each photo, not {rows} times the"
            f" {len(metadata.skeleton.joints)} keypoints that its metadata names"
        )
    return rows


def _describe(values: dict[str, ort.NodeArg]) -> dict[str, str]:
    return {name: f"{each.type} {each.shape}" for name, each in values.items()}
