"""Photos from disk to batches of pictures and targets, off the main process."""

from collections.abc import Callable, Iterator

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from model import image
from model.canvas import Canvas, prepare
from model.codec import Targets, encode
from model.gaussian import Radius, gaussian_radius, published_radius
from model.letterbox import place
from model.session import count_cpus
from training.augment import Example, paste, plain_view, random_mosaic, random_view
from training.config import Config
from training.datasets.dataset import Dataset, InvalidDataset, Photo
from training.processes import ALONE, Processes

Part = tuple[Tensor, Targets]  # of a batch

_MOST_WORKERS = 16  # unless set: each keeps two batches in shared memory, with COCO's targets 0.1 GB for 16 pictures

RADII: dict[str, Radius] = {"cornernet": gaussian_radius, "published": published_radius}


class TrainingViews(torch.utils.data.Dataset[tuple[NDArray[np.uint8], Targets]]):
    """The random views of one epoch, in its order.

    A view depends on (seed, epoch, position) alone, so that neither workers nor a restart change what a run sees.
    """

    def __init__(self, dataset: Dataset, config: Config, epoch: int) -> None:
        self.dataset = dataset
        self.config = config
        self.epoch = epoch
        self.size = config.picture_size(epoch)
        random = np.random.default_rng((config.seed, epoch))
        repeats = repeat_factors(dataset, config.repeat_threshold)
        counts = np.floor(repeats + random.random(len(repeats))).astype(np.int64)  # 1.3: once, and again in 3 of 10
        self.order = random.permutation(np.repeat(np.arange(len(counts)), counts))
        self.pasted_classes = np.flatnonzero(dataset.shown_classes.any(0))

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, position: int) -> tuple[NDArray[np.uint8], Targets]:
        view, targets = self.view(position)
        return view.pixels, targets

    def view(self, position: int) -> tuple[Example, Targets]:
        """Returns the epoch's view number `position`, `size` pixels squared, and what it should teach."""
        if self.config.overfit:
            photo = self.dataset.photos[self.order[position]]
            mirrored = self.dataset.skeleton.mirrored
            view = plain_view(letterbox_photo(photo, self.size), photo.objects, mirrored)
        else:
            view = self._draw_view(position)
        cells = self.size // self.config.stride
        boxes, labels, is_ignored, keypoints = map(torch.from_numpy, view.objects)
        targets = encode(
            boxes,
            labels,
            is_ignored,
            keypoints,
            class_count=len(self.dataset.labels),
            grid=(cells, cells),
            radius_iou=self.config.radius_iou,
            radius_of=RADII[self.config.radius],
            stride=self.config.stride,
        )
        return view, targets

    def _draw_view(self, position: int) -> Example:
        random = np.random.default_rng((self.config.seed, self.epoch, position))
        is_plain = self.config.sees_photos_as_they_are(self.epoch)
        photo = self._read(self.order[position])
        if random.random() < self.config.mosaic and not is_plain:
            others = [self._read(other) for other in random.choice(self.order, size=3)]
            view = random_mosaic([photo, *others], self.size, self.config, random)
        else:
            view = random_view(photo, self.size, self.config, random)
        if random.random() < self.config.copy_paste and not is_plain:
            label = random.choice(self.pasted_classes)
            photos = np.flatnonzero(self.dataset.shown_classes[:, label])
            donor = random_view(self._read(random.choice(photos)), self.size, self.config, random)
            view = paste(view, donor, label, random)
        return view

    def _read(self, number: int) -> Example:
        """The photo, no larger than the largest view of it needs, and its objects in the pixels that are left."""
        photo = self.dataset.photos[number]
        fitted = place(photo.width, photo.height, [(self.size, self.size)])
        largest = self.config.largest_scale
        pixels = read_photo(photo, round(fitted.width * largest), round(fitted.height * largest))
        scale = np.array([pixels.shape[1] / photo.width, pixels.shape[0] / photo.height, 1], np.float32)
        boxes, keypoints = photo.boxes_xyxy * scale[[0, 1, 0, 1]], photo.keypoints * scale
        objects = photo.objects._replace(boxes_xyxy=boxes, keypoints=keypoints)
        return Example(pixels, objects, self.dataset.skeleton.mirrored)


def repeat_factors(dataset: Dataset, threshold: float) -> NDArray[np.float64]:
    """How often each photo comes in an epoch, at least once: that of its rarest class, sqrt(threshold / frequency).

    Shape: (photos,). A class's frequency is the share of photos that show it. Source: LVIS (arXiv 1908.03195, 4).
    """
    shows = dataset.shown_classes
    frequency = shows.mean(0).clip(min=1e-9)
    of_class = np.sqrt(threshold / frequency).clip(min=1.0)
    factors: NDArray[np.float64] = np.where(shows, of_class, 1.0).max(1)
    return factors


def training_batches(
    dataset: Dataset,
    config: Config,
    epoch: int,
    first_step: int,
    device: torch.device,
    processes: Processes = ALONE,
) -> Iterator[tuple[Part, ...]]:
    """This process's share of the batches of `epoch` from `first_step` on, each in `accumulate` parts, for `device`.

    A part: images (B, size, size, 3), uint8, RGB, and `Targets` stacked, B = batch_size / accumulate / processes.
    Repeated photos displace others: an epoch has `steps_per_epoch` batches however many come more than once.
    """
    steps = steps_per_epoch(dataset, config)
    parts = np.arange(steps * config.batch_size).reshape(steps, config.accumulate, processes.count, -1)
    positions = parts[first_step:, :, processes.index].reshape((steps - first_step) * config.accumulate, -1)
    loader = DataLoader(
        TrainingViews(dataset, config, epoch),
        batch_sampler=positions.tolist(),
        num_workers=choose_workers(config.workers, device, processes),
        pin_memory=device.type == "cuda",
        worker_init_fn=_start_worker,
    )
    return zip(*[iter(loader)] * config.accumulate, strict=True)


def choose_workers(wanted: int | None, device: torch.device, processes: Processes = ALONE) -> int:
    """Returns how many processes load for one that computes: what is wanted, or for None what `device` goes well with.

    A GPU is fed by this process's share of the machine's usable CPUs, up to `_MOST_WORKERS`. On a CPU nobody loads
    beside the step, whose threads wait for the one whose core a worker has taken; docs/training.md says what it costs.
    """
    if wanted is not None:
        return wanted
    if device.type != "cuda":
        return 0
    return min(_MOST_WORKERS, max(1, count_cpus() // processes.local_count))


def steps_per_epoch(dataset: Dataset, config: Config) -> int:
    """Optimiser steps in one epoch; raises `InvalidDataset` where the data does not fill one batch."""
    steps = len(dataset.photos) // config.batch_size
    if steps == 0:
        raise InvalidDataset(
            f"{dataset.annotations_path}: {len(dataset.photos)} pictures do not fill one batch: set batch_size lower"
        )
    return steps


class LetterboxedPhotos(torch.utils.data.Dataset[NDArray[np.uint8]]):
    """The photos as the network is evaluated on them: (size, size, 3), uint8, RGB."""

    def __init__(self, dataset: Dataset, size: int) -> None:
        self.dataset = dataset
        self.size = size

    def __len__(self) -> int:
        return len(self.dataset.photos)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        return letterbox_photo(self.dataset.photos[index], self.size).pixels


def evaluation_batches(
    dataset: Dataset, size: int, batch_size: int, workers: int | None, device: torch.device
) -> Iterator[Tensor]:
    """All photos in order, letterboxed, for `device`: images (B, size, size, 3), uint8, RGB."""
    return iter(
        DataLoader(
            LetterboxedPhotos(dataset, size),
            batch_size,
            num_workers=choose_workers(workers, device),
            pin_memory=device.type == "cuda",
            worker_init_fn=_start_worker,
        )
    )


def letterbox_photo(photo: Photo, size: int) -> Canvas:
    """The photo as the network is evaluated on it, `size` pixels squared; raises `InvalidDataset`."""
    return prepare_photo(photo, lambda data: prepare(data, [(size, size)]))


def prepare_photo(photo: Photo, prepare: Callable[[bytes], Canvas]) -> Canvas:
    """What `prepare` makes of the photo's file; raises `InvalidDataset` where that is not what it should be."""
    try:
        canvas = prepare(photo.path.read_bytes())
    except image.InvalidImage as error:
        raise InvalidDataset(f"{photo.path}: {error}") from error
    _check_size(photo, canvas.letterbox.photo_width, canvas.letterbox.photo_height)
    return canvas


def read_photo(photo: Photo, least_width: int = 0, least_height: int = 0) -> NDArray[np.uint8]:
    """The photo as (height, width, 3), uint8, RGB, or halved while it stays as large as it should at least be.

    Raises `InvalidDataset` where the file is not what it should be.
    """
    data = photo.path.read_bytes()
    try:
        header = image.read_header(data)
        pixels = image.decode(data, header, least_width, least_height)
    except image.InvalidImage as error:
        raise InvalidDataset(f"{photo.path}: {error}") from error
    _check_size(photo, header.width, header.height)
    return pixels


def _check_size(photo: Photo, width: int, height: int) -> None:
    if (width, height) != (photo.width, photo.height):
        raise InvalidDataset(
            f"{photo.path}: is {width}x{height} pixels, as its EXIF orientation turns it;"
            f" the annotations say {photo.width}x{photo.height}"
        )


def _start_worker(_: int) -> None:
    cv2.setNumThreads(0)  # the workers are the parallelism
