"""Compares exported models: AP, and time per photo on one CPU thread."""

import dataclasses
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from model.detector import Detector
from training.datasets.dataset import Dataset, Photo
from training.environment import name_processor
from training.evaluation.evaluate import detect_with_model
from training.evaluation.metrics import measure
from training.files import write_json
from training.report.charts import Point, draw_trade_off, save_chart

_TIMED_PHOTOS = 100


def compare(
    paths: Sequence[Path],
    dataset: Dataset,
    others: Sequence[Point],
    chart: Path | None,
    report: Path | None,
    console: Console,
) -> None:
    """Prints AP on `dataset` and milliseconds per photo of each model, beside the published results in `others`.

    `chart` is a file to draw them into, in the format of its suffix; `report` is a file for the results as JSON. Raises
    `InvalidModel` if a file is not one of our models, `InvalidDataset` if a model has labels that the data lacks.
    """
    detectors = [Detector(path, "cpu", threads=1) for path in paths]
    milliseconds = time_interleaved(detectors, dataset.photos[:_TIMED_PHOTOS])
    points = []
    for detector, taken in zip(detectors, milliseconds, strict=True):
        metrics = measure(dataset, detect_with_model(detector, dataset, console))
        metrics.print_undetected(detector.metadata.name, detector.metadata.labels, console)
        points.append(Point(detector.metadata.name, round(metrics.ap, 2), round(metrics.ap50, 2), round(taken, 2)))
    table = Table("", "AP", "AP50", "ms/photo", "MB", caption=f"median on one thread of {name_processor()}")
    sizes = [f"{path.stat().st_size / 1e6:.1f}" for path in paths]
    for point, size in zip([*points, *others], [*sizes, *["-"] * len(others)], strict=True):
        table.add_row(point.name, f"{point.ap:.1f}", f"{point.ap50:.1f}", f"{point.milliseconds:.1f}", size)
    console.print(table)
    if chart:
        save_chart(draw_trade_off(points, others), chart)
        console.print(f"wrote {chart}")
    if report:
        content = {"photos": len(dataset.photos), "processor": name_processor()}
        rows = [dataclasses.asdict(point) for point in points]
        write_json(report, content | {"models": rows})
        console.print(f"wrote {report}")


def time_interleaved(detectors: Sequence[Detector], photos: Sequence[Photo]) -> list[float]:
    """Returns each detector's median CPU milliseconds of inference per photo, without decoding: (detectors,).

    The detectors run on each photo in turn, so that other load on the machine slows all of them alike.
    """
    times: list[list[float]] = [[] for _ in detectors]
    for photo in photos:
        data = photo.path.read_bytes()
        for detector, seconds in zip(detectors, times, strict=True):
            canvas = detector.prepare(data).pixels
            detector.infer([canvas])  # warm-up: the first run of a shape takes longer
            started = time.thread_time()
            detector.infer([canvas])
            seconds.append(time.thread_time() - started)
    return [1000 * statistics.median(seconds) for seconds in times]
