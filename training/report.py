"""`report.html`: what a run or a model is worth, in one page that needs no other file."""

import base64
import dataclasses
import datetime
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from model.detector import Detections
from model.image import encode
from training import draw
from training.charts import (
    Row,
    draw_calibration,
    draw_learning_rate,
    draw_losses,
    draw_precision,
    draw_sweep,
    to_svg,
)
from training.datasets.dataset import Dataset
from training.diagnosis import ClassFigures, Diagnosis, diagnose
from training.draw import draw_outcome
from training.metrics import Metrics

_BEST, _WORST = 8, 20  # photos at the ends of the ranking
_LONGEST_SIDE = 480  # pixels
_QUALITY = 80  # of JPEG
_CONFUSIONS = 10  # put in words
_LEGEND = {
    "hit": draw.HIT,
    "false alarm": draw.FALSE_ALARM,
    "missed": draw.MISS,
    "true box of a hit": draw.TRUTH,
    "not counted": draw.NOT_COUNTED,
}
_FOLDER = Path(__file__).parent / "page"


@dataclasses.dataclass(frozen=True)
class Subject:
    """What a report is about; `state` says how far it has come."""

    name: str
    state: str
    dataset: str
    git_commit: str
    configuration: Mapping[str, object]
    environment: Mapping[str, str]


def render_findings(
    dataset: Dataset,
    detections: list[Detections],
    metrics: Metrics,
    title: str,
    epoch: int,
    is_bare: bool = False,
) -> str:
    """What was found in `dataset`, as a part of a page: figures, classes, errors, photos.

    `epoch` is that of the weights, 0 where they have none. In a bare one boxes are drawn without their photos, for a
    page to pass on. Raises `InvalidDataset` where a photo cannot be read.
    """
    diagnosis = diagnose(dataset, detections)
    ranking = diagnosis.rank_photos()
    middle = max(len(ranking) // 2, len(ranking) - _WORST)
    return _render(
        "findings.html",
        title=title,
        epoch=epoch,
        metrics=metrics,
        diagnosis=diagnosis,
        objects=sum(each.objects for each in diagnosis.classes),
        photos=len(dataset.photos),
        classes=_list_classes(diagnosis, metrics),
        sweep=Markup(to_svg(draw_sweep(diagnosis.sweep), "Precision, recall and F1 by threshold")),
        calibration=Markup(to_svg(draw_calibration(diagnosis.calibration), "Share of right detections by score")),
        confusions=_list_confusions(dataset.labels, diagnosis.confusion),
        names=(*dataset.labels, "nothing"),
        shades=_shade(diagnosis.confusion),
        colours={name: f"rgb{colour}" for name, colour in _LEGEND.items()},
        best=[_show(dataset, diagnosis, index, is_bare) for index in ranking[: min(_BEST, middle)]],
        worst=[_show(dataset, diagnosis, index, is_bare) for index in reversed(ranking[middle:])],
    )


def render_report(subject: Subject, rows: Sequence[Row], findings: str) -> str:
    """The whole page; `rows` are those of metrics.jsonl, none where there was no run."""
    charts = {}
    if rows:
        charts["Average precision"] = draw_precision(rows)
        if losses := draw_losses(rows):
            charts["Loss terms"] = losses
        if learning_rate := draw_learning_rate(rows):
            charts["Learning rate"] = learning_rate
    return _render(
        "report.html",
        subject=subject,
        written=datetime.datetime.now().astimezone().isoformat(" ", "minutes"),
        charts={title: Markup(to_svg(figure, f"{title} by epoch")) for title, figure in charts.items()},
        style=Markup((_FOLDER / "style.css").read_text()),
        findings=Markup(findings),
    )


def read_findings(page: str, epoch: int) -> str | None:
    """The findings of `epoch` that a page shows, for the next page; None where it shows those of another."""
    found = re.search(rf"<!-- findings of epoch {epoch} -->.*<!-- end of findings -->", page, re.DOTALL)
    return found and found[0]


def _render(name: str, **content: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name).render(content)


def _list_classes(diagnosis: Diagnosis, metrics: Metrics) -> list[dict[str, Any]]:
    """The table's rows, by falling AP50; classes without objects come last."""
    rows = []
    for each in diagnosis.classes:
        ap, ap50 = metrics.by_class.get(each.label, (0.0, 0.0))
        found = each.hits + each.false_alarms
        row = {"label": each.label, "objects": each.objects, "ap": ap, "ap50": ap50, "found": found}
        row["precision"] = 100 * each.hits / found if found else None
        row["recall"] = 100 * each.hits / each.objects if each.objects else None
        row["curve"] = _trace(each)
        rows.append(row)
    return sorted(rows, key=lambda row: (row["objects"] > 0, row["ap50"]), reverse=True)


def _trace(figures: ClassFigures) -> str:
    """The precision-recall curve as an SVG polyline's points in a square of 100; "" for a class without objects."""
    if figures.precision is None:
        return ""
    heights = (100 - 100 * figures.precision).round(1).tolist()
    last = len(heights) - 1
    corners = (at for at in range(last + 1) if at in (0, last) or not heights[at - 1] == heights[at] == heights[at + 1])
    return " ".join(f"{at},{heights[at]:g}" for at in corners)


def _list_confusions(labels: Sequence[str], confusion: NDArray[np.int64]) -> list[dict[str, Any]]:
    """The classes that are most often taken for each other."""
    mistaken = confusion[:-1, :-1].copy()
    np.fill_diagonal(mistaken, 0)
    most = np.argsort(-mistaken, axis=None, kind="stable")[:_CONFUSIONS]
    pairs = [(row, column) for row, column in zip(*np.unravel_index(most, mistaken.shape), strict=True)]
    return [
        {"true": labels[i], "found": labels[j], "count": int(mistaken[i, j]), "objects": int(confusion[i].sum())}
        for i, j in pairs
        if mistaken[i, j]
    ]


def _shade(confusion: NDArray[np.int64]) -> list[list[float]]:
    """The share of each cell in its row, and in the last row, of false alarms, in its column."""
    shades = confusion / confusion.sum(1, keepdims=True).clip(min=1)
    shades[-1] = confusion[-1] / confusion.sum(0).clip(min=1)
    rounded: list[list[float]] = shades.round(2).tolist()
    return rounded


def _show(dataset: Dataset, diagnosis: Diagnosis, index: int, is_bare: bool) -> dict[str, Any]:
    photo, outcome = dataset.photos[index], diagnosis.outcomes[index]
    picture = draw_outcome(photo, outcome, dataset, _LONGEST_SIDE, is_bare)
    file = encode(picture, "jpeg", [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    address = "data:image/jpeg;base64," + base64.b64encode(file).decode()
    return {"name": photo.path.name, "outcome": outcome, "address": address}
