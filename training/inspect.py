"""Checks and visualises a data set before training: `python -m training inspect`."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from model.canvas import prepare
from model.detector import Detections
from model.draw import choose_colour, draw_boxes, draw_detections
from model.image import encode
from model.network.gaussian import IGNORED
from model.network.heads import STRIDE
from training.config import Config
from training.datasets.dataset import Dataset
from training.evaluation.collisions import find_collisions
from training.loader import TrainingViews

_STRIDES = (8, 4, 2)
_INPUT_SIZES = (320, 416, 512)
_VIEWS = 16
_COLUMNS = 4
_SMALL, _LARGE = 32**2, 96**2  # COCO's object areas, in pixels of the photo


def inspect_dataset(dataset: Dataset, faults: Sequence[str], config: Config, folder: Path, console: Console) -> None:
    """Prints faults, counts and collisions, and draws augmented images and heatmaps of `config` into `folder`."""
    for fault in faults:
        console.print(f"[red]fault[/red] {escape(fault)}", soft_wrap=True, highlight=False)
    console.print(
        f"{len(dataset.photos)} photos, {sum(len(p.labels) for p in dataset.photos)} boxes, {len(faults)} faults"
    )
    if not dataset.photos:
        return
    if dataset.skeleton.joints:
        console.print(dataset.skeleton.describe_mirroring(), soft_wrap=True, highlight=False)
    console.print(_tabulate_classes(dataset))
    console.print(_tabulate_collisions(dataset))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "views.jpg"
    path.write_bytes(encode(draw_views(dataset, config), "jpeg"))
    console.print(f"{path}: augmented training images and their target heatmaps", soft_wrap=True)
    crowded = draw_crowds(dataset, config.input_size)
    if crowded is not None:
        path = folder / "crowds.jpg"
        path.write_bytes(encode(crowded, "jpeg"))
        console.print(f"{path}: photos with the most objects in the same or an adjacent cell", soft_wrap=True)


def draw_views(dataset: Dataset, config: Config) -> NDArray[np.uint8]:
    """Draws pairs of an augmented image with its boxes and its heatmap, with all classes in one: (h, w, 3), RGB.

    White is a centre; grey is ignored.
    """
    views = TrainingViews(dataset, config, epoch=0)
    tiles = []
    for position in range(min(_VIEWS, len(views))):
        view, targets = views.view(position)
        objects = view.objects.select(~view.objects.is_ignored)
        keypoints = objects.keypoints.clip(max=1)  # visibility as score
        boxes = Detections(objects.boxes_xyxy, np.ones(len(objects.labels), np.float32), objects.labels, keypoints)
        heatmap = torch.cat([targets.heatmap, targets.keypoints.heatmap]).numpy()
        heat = np.repeat((heatmap.max(0).clip(min=0) * 255).astype(np.uint8)[:, :, None], 3, axis=2)
        heat[(heatmap == IGNORED).any(0) & (heatmap.max(0) <= 0)] = 110
        heat = cv2.resize(heat, None, fx=config.stride, fy=config.stride, interpolation=cv2.INTER_NEAREST)
        blend = cv2.addWeighted(view.pixels, 0.4, heat, 0.8, 0)
        tiles.append(np.hstack([draw_detections(view.pixels, boxes, dataset.labels, dataset.skeleton), blend]))
    return _tile(tiles)


def draw_crowds(dataset: Dataset, input_size: int) -> NDArray[np.uint8] | None:
    """Draws the objects in the same or an adjacent cell at the paper's stride, on the photos with the most of them.

    Returns (h, w, 3), RGB, with tiles of `input_size` pixels squared; None without such objects.
    """
    crowds = []
    for photo in dataset.photos:
        is_crowded = find_collisions(photo, input_size, STRIDE).is_crowded
        if is_crowded.any():
            crowds.append((photo, is_crowded))
    crowds.sort(key=lambda crowd: -int(crowd[1].sum()))
    tiles = []
    for photo, is_crowded in crowds[:_VIEWS]:
        canvas = prepare(photo.path.read_bytes(), [(input_size, input_size)])
        boxes = canvas.letterbox.from_photo(photo.boxes_xyxy[is_crowded])
        colours = [choose_colour(label) for label in photo.labels[is_crowded].tolist()]
        tiles.append(draw_boxes(canvas.pixels, boxes, [""] * len(boxes), colours))
    return _tile(tiles) if tiles else None


def _tile(tiles: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    blank = [np.zeros_like(tiles[0])] * (-len(tiles) % _COLUMNS)
    rows = [np.hstack((tiles + blank)[at : at + _COLUMNS]) for at in range(0, len(tiles), _COLUMNS)]
    return np.asarray(np.vstack(rows), np.uint8)


def _tabulate_classes(dataset: Dataset) -> Table:
    labels = np.concatenate([photo.labels for photo in dataset.photos])
    is_ignored = np.concatenate([photo.is_ignored for photo in dataset.photos])
    areas = np.concatenate([photo.areas for photo in dataset.photos])
    photos = Counter(label for p in dataset.photos for label in np.unique(p.labels[~p.is_ignored]).tolist())
    table = Table("class", title="objects by class and COCO size")
    for heading in ("photos", "objects", "small", "medium", "large", "ignored"):
        table.add_column(heading, justify="right")
    for index, label in enumerate(dataset.labels):
        of_class = labels == index
        area = areas[of_class & ~is_ignored]
        small, large = int((area < _SMALL).sum()), int((area > _LARGE).sum())
        counts = (photos[index], len(area), small, len(area) - small - large, large, int((of_class & is_ignored).sum()))
        table.add_row(label, *map(str, counts))
    return table


def _tabulate_collisions(dataset: Dataset) -> Table:
    table = Table("input", title="objects in the same / an adjacent cell as another of their class")
    for stride in _STRIDES:
        table.add_column(f"stride {stride}", justify="right")
    for size in _INPUT_SIZES:
        table.add_row(f"{size} px", *(_count_collisions(dataset, size, stride) for stride in _STRIDES))
    return table


def _count_collisions(dataset: Dataset, input_size: int, stride: int) -> str:
    found = [find_collisions(photo, input_size, stride) for photo in dataset.photos]
    return f"{sum(int(each.collides.sum()) for each in found)} / {sum(int(each.is_adjacent.sum()) for each in found)}"
