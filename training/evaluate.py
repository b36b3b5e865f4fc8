"""Detections over a data set, by a network or by an exported model."""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from model.codec import decode
from model.letterbox import place
from model.network import CenterNet
from training.coco import Dataset
from training.loader import evaluation_batches
from training.metrics import Metrics, PhotoDetections
from training.progress import progress_bar

_BATCH = 16


@torch.inference_mode()
def detect_with_network(
    network: CenterNet, dataset: Dataset, size: int, workers: int, console: Console
) -> list[PhotoDetections]:
    """Finds the objects of every photo, letterboxed to `size` pixels, in full precision."""
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
                results.append(PhotoDetections(letterbox.to_photo(image_boxes), image_scores, image_labels))
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
    path.write_text(json.dumps(asdict(metrics), indent=2) + "\n")
