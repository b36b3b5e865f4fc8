"""Data loading: photos on disk → batches of augmented images and targets, in worker processes."""

from collections.abc import Callable, Iterator

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from model import image
from model.canvas import Canvas, prepare
from model.letterbox import place
from model.network.codec import Targets, encode
from model.network.gaussian import Radius, gaussian_radius, published_radius
from model.session import count_cpus
from training.augment import Example, letterboxed_view, paste_object, random_mosaic, random_view
from training.config import Config
from training.datasets.dataset import Dataset, InvalidDataset, Photo, check_size, raise_fault
from training.processes import SINGLE_PROCESS, Processes

MicroBatch = tuple[Tensor, Targets]  # images and targets of one of the `accumulate` parts of a batch

_MAX_WORKERS = 16  # by default: each keeps two batches in shared memory, 0.1 GB for 16 images with COCO's targets

RADII: dict[str, Radius] = {"cornernet": gaussian_radius, "published": published_radius}


class TrainingViews(torch.utils.data.Dataset[tuple[NDArray[np.uint8], Targets]]):
    """The augmented views of one epoch, in shuffled order.

    A view depends only on (seed, epoch, position), so that neither the number of workers nor a restart changes it.
    """

    def __init__(self, dataset: Dataset, config: Config, epoch: int) -> None:
        self.dataset = dataset
        self.config = config
        self.epoch = epoch
        self.size = config.image_size(epoch)
        random = np.random.default_rng((config.seed, epoch))
        repeats = repeat_factors(dataset, config.repeat_threshold)
        # a factor of 1.3: once, and again with probability 0.3
        counts = np.floor(repeats + random.random(len(repeats))).astype(np.int64)
        self.order = random.permutation(np.repeat(np.arange(len(counts)), counts))
        self.pasted_classes = np.flatnonzero(dataset.class_presence.any(0))

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, position: int) -> tuple[NDArray[np.uint8], Targets]:
        view, targets = self.view(position)
        return view.pixels, targets

    def view(self, position: int) -> tuple[Example, Targets]:
        """Returns view `position` of the epoch, (size, size, 3), and its targets."""
        if self.config.overfit:
            photo = self.dataset.photos[self.order[position]]
            mirrored = self.dataset.skeleton.mirrored
            view = letterboxed_view(letterbox_photo(photo, self.size), photo.objects, mirrored)
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
        may_mix = not self.config.disables_mixing(self.epoch)
        photo = self._read(self.order[position])
        if random.random() < self.config.mosaic and may_mix:
            others = [self._read(other) for other in random.choice(self.order, size=3)]
            view = random_mosaic([photo, *others], self.size, self.config, random)
        else:
            view = random_view(photo, self.size, self.config, random)
        if random.random() < self.config.copy_paste and may_mix:
            label = random.choice(self.pasted_classes)
            photos = np.flatnonzero(self.dataset.class_presence[:, label])
            donor = random_view(self._read(random.choice(photos)), self.size, self.config, random)
            view = paste_object(view, donor, label, random)
        return view

    def _read(self, number: int) -> Example:
        """Reads a photo at no higher resolution than its largest view needs, and scales its objects to match."""
        photo = self.dataset.photos[number]
        fitted = place(photo.width, photo.height, [(self.size, self.size)])
        max_scale = self.config.max_scale
        pixels = read_photo(photo, round(fitted.width * max_scale), round(fitted.height * max_scale))
        scale = np.array([pixels.shape[1] / photo.width, pixels.shape[0] / photo.height, 1], np.float32)
        boxes, keypoints = photo.boxes_xyxy * scale[[0, 1, 0, 1]], photo.keypoints * scale
        objects = photo.objects._replace(boxes_xyxy=boxes, keypoints=keypoints)
        return Example(pixels, objects, self.dataset.skeleton.mirrored)


def repeat_factors(dataset: Dataset, threshold: float) -> NDArray[np.float64]:
    """Returns how often an epoch repeats each photo (photos,): max(1, sqrt(threshold / frequency)) of its rarest class.

    A class's frequency is the share of photos that show it. Source: LVIS (arXiv 1908.03195, 4).
    """
    presence = dataset.class_presence
    frequency = presence.mean(0).clip(min=1e-9)
    class_factors = np.sqrt(threshold / frequency).clip(min=1.0)
    factors: NDArray[np.float64] = np.where(presence, class_factors, 1.0).max(1)
    return factors


def training_batches(
    dataset: Dataset,
    config: Config,
    epoch: int,
    first_step: int,
    device: torch.device,
    processes: Processes = SINGLE_PROCESS,
) -> Iterator[tuple[MicroBatch, ...]]:
    """Yields this process's share of each batch of `epoch` from `first_step` on, as `accumulate` micro-batches.

    Each: images (B, size, size, 3), uint8, RGB, and stacked `Targets`, B = batch_size / accumulate / world_size.
    Repeated photos displace others: an epoch always has `steps_per_epoch` batches.
    """
    steps = steps_per_epoch(dataset, config)
    positions = np.arange(steps * config.batch_size).reshape(steps, config.accumulate, processes.world_size, -1)
    local_positions = positions[first_step:, :, processes.rank].reshape(-1, positions.shape[-1])
    loader = DataLoader(
        TrainingViews(dataset, config, epoch),
        batch_sampler=local_positions.tolist(),
        num_workers=choose_workers(config.workers, device, processes),
        pin_memory=device.type == "cuda",
        worker_init_fn=_start_worker,
    )
    return zip(*[iter(loader)] * config.accumulate, strict=True)


def choose_workers(configured: int | None, device: torch.device, processes: Processes = SINGLE_PROCESS) -> int:
    """Returns the number of loader workers for each training process; None chooses it by `device`.

    A GPU gets this process's share of the machine's usable CPUs, up to `_MAX_WORKERS`. A CPU gets none: a worker would
    take a core from the threads that compute the step (docs/training.md has the cost).
    """
    if configured is not None:
        return configured
    if device.type != "cuda":
        return 0
    return min(_MAX_WORKERS, max(1, count_cpus() // processes.local_world_size))


def steps_per_epoch(dataset: Dataset, config: Config) -> int:
    """Returns the optimiser steps per epoch; raises `InvalidDataset` if the data does not fill one batch."""
    steps = len(dataset.photos) // config.batch_size
    if steps == 0:
        raise InvalidDataset(
            f"{dataset.annotations_path}: {len(dataset.photos)} photos do not fill one batch: lower batch_size"
        )
    return steps


class LetterboxedPhotos(torch.utils.data.Dataset[NDArray[np.uint8]]):
    """The photos letterboxed for evaluation: (size, size, 3), uint8, RGB."""

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
    """Yields all photos in order, letterboxed: images (B, size, size, 3), uint8, RGB."""
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
    """Letterboxes a photo to (size, size, 3), as in evaluation; raises `InvalidDataset`."""
    return prepare_photo(photo, lambda data: prepare(data, [(size, size)]))


def prepare_photo(photo: Photo, prepare: Callable[[bytes], Canvas]) -> Canvas:
    """Applies `prepare` to the photo's file; raises `InvalidDataset` if it is invalid or of another size."""
    try:
        canvas = prepare(photo.path.read_bytes())
    except image.InvalidImage as error:
        raise InvalidDataset(f"{photo.path}: {error}") from error
    size = (canvas.letterbox.photo_width, canvas.letterbox.photo_height)
    check_size(photo.path, size, (photo.width, photo.height), raise_fault)
    return canvas


def read_photo(photo: Photo, min_width: int = 0, min_height: int = 0) -> NDArray[np.uint8]:
    """Reads a photo as (height, width, 3), uint8, RGB, downscaled by powers of two to no less than the minimum size.

    Raises `InvalidDataset` if the file is invalid or of another size.
    """
    data = photo.path.read_bytes()
    try:
        header = image.read_header(data)
        pixels = image.decode(data, header, min_width, min_height)
    except image.InvalidImage as error:
        raise InvalidDataset(f"{photo.path}: {error}") from error
    check_size(photo.path, (header.width, header.height), (photo.width, photo.height), raise_fault)
    return pixels


def _start_worker(_: int) -> None:
    cv2.setNumThreads(0)  # the workers themselves run in parallel
