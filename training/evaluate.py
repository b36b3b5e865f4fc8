"""Detections over a data set, by a network or by an exported model."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from model.codec import decode
from model.detector import Detections, Detector
from model.letterbox import place
from training.datasets.dataset import Dataset, InvalidDataset
from training.loader import evaluation_batches
from training.metrics import Metrics
from training.progress import progress_bar

_BATCH = 16


@torch.inference_mode()
def detect_with_network(
    network: nn.Module, dataset: Dataset, size: int, workers: int, console: Console
) -> list[Detections]:
    """Finds the objects of every photo by a `CenterNet` or an average of one, at `size` pixels in fp32."""
    network.eval()
    device = next(network.parameters()).device
    photos = iter(dataset.photos)
    results = []
    with progress_bar(console, "evaluate", len(dataset.photos)) as advance:
        for images in evaluation_batches(dataset, size, _BATCH, workers):
            boxes, scores, labels = (t.cpu().numpy() for t in decode(network(images.to(device))))
            # photos come last, so that none is taken from the iterator when the batch is at its end
            for image_boxes, image_scores, image_labels, photo in zip(boxes, scores, labels, photos, strict=False):
                letterbox = place(photo.width, photo.height, size, size)
                results.append(Detections(letterbox.to_photo(image_boxes), image_scores, image_labels))
                advance(pictures=1)
    return results


def detect_with_model(detector: Detector, dataset: Dataset, console: Console) -> list[Detections]:
    """Finds the objects of every photo by an exported model, from the files' bytes: the way that serves.

    Raises `InvalidDataset` where the model knows a label that the data does not have.
    """
    unknown = [label for label in detector.metadata.labels if label not in dataset.labels]
    if unknown:
        raise InvalidDataset(f"{dataset.annotations_path}: has no category {', '.join(unknown)}, which the model finds")
    label_of = np.array([dataset.labels.index(label) for label in detector.metadata.labels], np.int64)
    results = []
    with progress_bar(console, f"evaluate {detector.metadata.name}", len(dataset.photos)) as advance:
        for photo in dataset.photos:
            [found] = detector.detect([photo.path.read_bytes()])
            results.append(dataclasses.replace(found, labels=label_of[found.labels]))
            advance(pictures=1)
    return results


def print_metrics(metrics: Metrics, console: Console) -> None:
    """A table of the whole and of every class."""
    table = Table("", "AP", "AP50", "AP75", "small", "medium", "large")
    sizes = (metrics.ap_small, metrics.ap_medium, metrics.ap_large)
    figures = [f"{v:.1f}" for v in (metrics.ap, metrics.ap50, metrics.ap75)]
    table.add_row("all", *figures, *("-" if v is None else f"{v:.1f}" for v in sizes), end_section=True)
    for label, (ap, ap50) in metrics.by_class.items():
        table.add_row(label, f"{ap:.1f}", f"{ap50:.1f}")
    console.print(table)


def write_metrics(metrics: Metrics, path: Path) -> None:
    """The same as JSON."""
    path.write_text(json.dumps(dataclasses.asdict(metrics), indent=2) + "\n")
