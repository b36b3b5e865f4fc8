"""The command's inputs: photos by name, folder or glob, and the frames of videos."""

import contextlib
import dataclasses
import glob
import itertools
import math
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from model.errors import UserError
from model.image import SUFFIXES

VIDEO_SUFFIXES = {
    *(".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv"),
    *(".3gp", ".ogv"),
}
_DEFAULT_FRAME_RATE = 25.0  # for videos without one
_MIN_COMPLETE = 0.9  # of the declared frames or of their duration; less is a truncated video


class NoImages(UserError):
    """A path names no photo or video."""


class UnreadableFile(Exception):
    """A file exists but cannot be read."""


@dataclasses.dataclass(frozen=True)
class Source:
    """A photo or a video; `name` is its path relative to the folder or glob that found it, else its file name."""

    path: Path
    name: Path

    @property
    def is_video(self) -> bool:
        """Whether the file is a video, by its suffix."""
        return self.path.suffix.lower() in VIDEO_SUFFIXES


@dataclasses.dataclass(frozen=True)
class Frame:
    """A frame's index and time in its video, and the rate of the processed frames."""

    index: int
    seconds: float
    per_second: float


@dataclasses.dataclass(frozen=True)
class InputImage:
    """One image to process: an image file, RGB pixels (h, w, 3) of a `frame`, or the error that occurred."""

    source: Source
    content: Path | NDArray[np.uint8] | UnreadableFile
    frame: Frame | None = None

    def __str__(self) -> str:
        return str(self.source.path) + ("" if self.frame is None else f", frame {self.frame.index}")


def find_sources(paths: Sequence[str], exclude: Path | None = None) -> list[Source]:
    """Returns the photos and videos that the paths name, each file once; raises `NoImages`.

    Folders are searched recursively for photos, globs match photos and videos. Files in the folder `exclude` are
    skipped, unless the search starts there.
    """
    sources: dict[Path, Source] = {}
    for path in paths:
        for source in _expand(path, exclude):
            sources.setdefault(source.path, source)
    return list(sources.values())


def count_images(sources: Sequence[Source], every: int) -> int | None:
    """Returns how many images `read_images` should yield; None if a video's frame count is unknown."""
    total = 0
    for source in sources:
        try:
            frames = count_frames(source.path) if source.is_video else 1
        except UnreadableFile:
            frames = 1  # the problem itself is reported as one image
        if frames is None:
            return None
        total += -(-frames // every)
    return total


def read_images(sources: Sequence[Source], every: int) -> Iterator[InputImage]:
    """Yields the photos, and of each video its first frame and then every `every`-th, read lazily."""
    for source in sources:
        if not source.is_video:
            yield InputImage(source, source.path)
            continue
        try:
            yield from _read_frames(source, every)
        except UnreadableFile as error:
            yield InputImage(source, error)


def _expand(path: str, exclude: Path | None) -> list[Source]:
    here = Path(path)
    if here.is_dir():
        photos = _search(here, "**/*", SUFFIXES, exclude)
        if not photos:
            raise NoImages(f"{path}: no photos in this folder; pass videos by name or as '{here}/*.mp4'")
        return photos
    if here.exists():
        return [Source(here, Path(here.name))]
    if not glob.has_magic(path):
        raise NoImages(f"{path}: there is no such file or folder")
    fixed = list(itertools.takewhile(lambda part: not glob.has_magic(part), here.parts))
    pattern = str(Path(*here.parts[len(fixed) :]))
    images = _search(Path(*fixed), pattern, SUFFIXES | VIDEO_SUFFIXES, exclude)
    if not images:
        raise NoImages(f"{path}: no photo or video matches")
    return images


def _search(root: Path, pattern: str, suffixes: Collection[str], exclude: Path | None) -> list[Source]:
    """Returns the matching files, sorted, without hidden ones, like a shell's `*`."""
    within, excluded = root.resolve(), exclude and exclude.resolve()
    sources = [Source(file, file.relative_to(root)) for file in sorted(root.glob(pattern))]
    return [
        source
        for source in sources
        if source.path.suffix.lower() in suffixes
        and not any(part.startswith(".") for part in source.name.parts)
        and (excluded == within or excluded not in (within / source.name).parents)
        and source.path.is_file()
    ]


def _read_frames(source: Source, every: int) -> Iterator[InputImage]:
    with _opened(source.path) as video:
        per_second = video.get(cv2.CAP_PROP_FPS)
        per_second = per_second if 0 < per_second < math.inf else _DEFAULT_FRAME_RATE
        count, seconds = video.get(cv2.CAP_PROP_FRAME_COUNT), 0.0
        for index in itertools.count():
            if not video.grab():
                break
            seconds = video.get(cv2.CAP_PROP_POS_MSEC) / 1000 or index / per_second
            if index % every:
                continue
            taken, bgr = video.retrieve()
            if not taken:
                raise UnreadableFile(f"its frame {index} cannot be decoded")
            pixels = np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)
            yield InputImage(source, pixels, Frame(index, round(seconds, 3), per_second / every))
    if not index:
        raise UnreadableFile("the video has no frame that can be decoded")
    # of a varying frame rate the count is an estimate, so the time must be short of it too
    if max(index, seconds * per_second) < _MIN_COMPLETE * count:
        raise UnreadableFile(f"the video ends after {index} of about {count:.0f} frames: it is truncated or damaged")


def count_frames(path: Path) -> int | None:
    """Returns how many frames a video declares; None if that is unknown. Raises `UnreadableFile`."""
    with _opened(path) as video:
        frames = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
    return frames if frames > 0 else None


def check_video_name(path: Path) -> None:
    """Raises `UnreadableFile` for a name that is not UTF-8, on which OpenCV crashes."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise UnreadableFile("its name is not UTF-8: rename it") from None


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[cv2.VideoCapture]:
    check_video_name(path)
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # errors are reported by this program, not printed by FFmpeg
    video = cv2.VideoCapture(str(path.absolute()), cv2.CAP_FFMPEG)
    try:
        if not video.isOpened():
            raise UnreadableFile("it is not a video of a known format, or it is truncated")
        yield video
    finally:
        video.release()
