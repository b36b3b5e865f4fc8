"""Writes results as JSON lines, CSV and annotated copies."""

import csv
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

import cv2
import numpy as np
from numpy.typing import NDArray

from app.files.sources import InputImage, Source, UnreadableFile, check_video_name, count_frames
from app.schemas import Answer, ModelDescription, Problem
from model.detector import Detections
from model.draw import draw_detections, draw_file

_PLACE = ("file", "frame", "seconds", "width", "height")
_OBJECT = ("label", "label_id", "score", "x_min", "y_min", "x_max", "y_max")
_KINDS = {".jpg": "jpeg", ".jpeg": "jpeg", ".jpe": "jpeg", ".png": "png"}


@dataclasses.dataclass(frozen=True)
class ImageResult:
    """An image's detections or problem, and its annotated copy if requested.

    `copy` is an image file, or RGB pixels (h, w, 3) of a video frame.
    """

    image: InputImage
    result: Answer | Problem
    copy: bytes | NDArray[np.uint8] | None


Write = Callable[[ImageResult], None]


def write_json_lines(stream: TextIO) -> Write:
    """Returns a writer of one JSON line per image: its file, its frame in a video, and its detections or problem."""

    def write(processed: ImageResult) -> None:
        line: dict[str, object] = {"file": str(processed.image.source.path)}
        if processed.image.frame:
            line |= {"frame": processed.image.frame.index, "seconds": processed.image.frame.seconds}
        stream.write(json.dumps(line | processed.result.model_dump(exclude_none=True)) + "\n")
        stream.flush()

    return write


def write_csv(stream: TextIO) -> Write:
    """Writes a CSV header; returns a writer of one row per object. An image with a problem has no rows."""
    table = csv.writer(stream, lineterminator="\n")
    table.writerow(_PLACE + _OBJECT)
    stream.flush()

    def write(processed: ImageResult) -> None:
        if isinstance(processed.result, Problem):
            return
        frame, size = processed.image.frame, processed.result.image
        file = str(processed.image.source.path).encode(errors="replace").decode()  # file names need not be UTF-8
        place = [file, *((frame.index, frame.seconds) if frame else ("", ""))]
        for each in processed.result.detections:
            edges = (each.box.x_min, each.box.y_min, each.box.x_max, each.box.y_max)
            table.writerow([*place, size.width, size.height, each.label, each.label_id, each.score, *edges])
        stream.flush()

    return write


class AnnotatedCopies:
    """Writes annotated copies into a folder, the frames of a video as one video; `close` completes the last one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._source: Source | None = None
        self._video: _VideoFile | None = None

    def write(self, processed: ImageResult) -> None:
        """Writes the image's copy, if there is one."""
        source, frame = processed.image.source, processed.image.frame
        if source != self._source:
            self.close()
            self._source = source
        if processed.copy is None:
            return
        path = self._folder / name_copy(source)
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(processed.copy, bytes):
            part = path.with_name(f".{path.name}.part")
            part.write_bytes(processed.copy)
            part.replace(path)
            return
        assert frame is not None
        if self._video is None:
            height, width, _ = processed.copy.shape
            self._video = _VideoFile(path, frame.per_second, width, height)
        self._video.write(processed.copy)

    def close(self) -> None:
        """Completes the current video, if any; raises `OSError` if it could not be written."""
        if self._video is not None:
            video, self._video = self._video, None
            video.close()


class _VideoFile:
    """An MP4 file that is written beside its place, and moved there by `close`. Raises `OSError`."""

    def __init__(self, path: Path, per_second: float, width: int, height: int) -> None:
        self._path, self._part = path, path.with_name(f".{path.stem}.part.mp4")
        self._count = 0
        try:
            check_video_name(path)
        except UnreadableFile as error:
            raise OSError(f"{path}: {error}") from error
        codec = cv2.VideoWriter.fourcc(*"mp4v")
        self._writer = cv2.VideoWriter(str(self._part), cv2.CAP_FFMPEG, codec, per_second, (width, height))
        if not self._writer.isOpened():
            raise OSError(f"no video can be written to {path}")

    def write(self, frame: NDArray[np.uint8]) -> None:
        """Appends a frame (h, w, 3), RGB."""
        self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        self._count += 1

    def close(self) -> None:
        """Completes the file."""
        self._writer.release()
        try:  # OpenCV reports no errors of writing
            is_complete = count_frames(self._part) == self._count
        except UnreadableFile:
            is_complete = False
        if not is_complete:
            self._part.unlink(missing_ok=True)
            raise OSError(f"{self._path} could not be written completely: is the disk full?")
        self._part.replace(self._path)


def name_copy(source: Source) -> Path:
    """Returns a copy's relative path: JPEG, PNG and MP4 files keep their name, others get `.png` or `.mp4` appended."""
    wanted, known = (".mp4", [".mp4"]) if source.is_video else (".png", _KINDS)
    return source.name if source.name.suffix.lower() in known else source.name.with_name(source.name.name + wanted)


def draw(image: InputImage, answer: Answer, model: ModelDescription) -> bytes | NDArray[np.uint8]:
    """Returns a copy of an image with its detections drawn, an image file or pixels as in `ImageResult`.

    Raises `OSError`, and what `model.image` raises.
    """
    indices = {each.label_id: index for index, each in enumerate(model.labels)}
    boxes = [(each.box.x_min, each.box.y_min, each.box.x_max, each.box.y_max) for each in answer.detections]
    joints = [[(at.x, at.y, at.score) for at in each.keypoints] for each in answer.detections if each.keypoints]
    found = Detections(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array([each.score for each in answer.detections], np.float32),
        np.array([indices[each.label_id] for each in answer.detections], np.int64),
        None if not joints else np.array(joints, np.float32),
    )
    names = [each.label for each in model.labels]
    if isinstance(image.content, np.ndarray):
        return draw_detections(image.content, found, names, model.skeleton)
    kind = _KINDS[name_copy(image.source).suffix.lower()]
    pixels = answer.image.width * answer.image.height
    return draw_file(image.source.path.read_bytes(), found, names, kind, pixels, model.skeleton)
