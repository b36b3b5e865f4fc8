"""`report.html`: the evaluation of a run or a model as one self-contained page."""

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
from training.datasets.dataset import Dataset
from training.evaluation.diagnosis import ClassDiagnosis, Diagnosis, diagnose
from training.evaluation.metrics import Metrics
from training.report.charts import (
    Row,
    draw_calibration,
    draw_learning_rate,
    draw_losses,
    draw_precision,
    draw_sweep,
    to_svg,
)
from training.report.draw import COLOURS, draw_outcome

_BEST, _WORST = 8, 20  # photos shown from each end of the ranking
_LONGEST_SIDE = 480  # pixels
_JPEG_QUALITY = 80
_CONFUSIONS = 10  # most frequent ones, listed above the matrix
_TEMPLATES = Path(__file__).parent / "page"


@dataclasses.dataclass(frozen=True)
class Subject:
    """What a report describes: a run or a model, with its `state` of progress."""

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
    boxes_only: bool = False,
) -> str:
    """Renders the findings on `dataset`, a section of the page: metrics, classes, errors, photos.

    `epoch` is that of the weights, 0 if unknown. With `boxes_only` boxes are drawn without their photos, so that the
    page can be shared. Raises `InvalidDataset` if a photo cannot be read.
    """
    diagnosis = diagnose(dataset, detections)
    ranking = diagnosis.rank_photos()
    middle = max(len(ranking) // 2, len(ranking) - _WORST)
    return _render_template(
        "findings.html",
        title=title,
        epoch=epoch,
        metrics=metrics,
        diagnosis=diagnosis,
        objects=sum(each.objects for each in diagnosis.classes),
        photos=len(dataset.photos),
        classes=_list_classes(diagnosis, metrics),
        sweep=Markup(to_svg(draw_sweep(diagnosis.sweep), "Precision, recall and F1 by score threshold")),
        calibration=Markup(to_svg(draw_calibration(diagnosis.calibration), "Reliability diagram: precision by score")),
        confusions=_list_confusions(dataset.labels, diagnosis.confusion),
        names=(*dataset.labels, "background"),
        shares=_normalise(diagnosis.confusion),
        colours={name: f"rgb{colour}" for name, colour in COLOURS.items()},
        best=[_render_photo(dataset, diagnosis, index, boxes_only) for index in ranking[: min(_BEST, middle)]],
        worst=[_render_photo(dataset, diagnosis, index, boxes_only) for index in reversed(ranking[middle:])],
    )


def render_report(subject: Subject, rows: Sequence[Row], findings: str) -> str:
    """Renders the whole page; `rows` are the rows of metrics.jsonl, empty without a run."""
    charts = {}
    if rows:
        charts["Average precision"] = draw_precision(rows)
        if losses := draw_losses(rows):
            charts["Loss terms"] = losses
        if learning_rate := draw_learning_rate(rows):
            charts["Learning rate"] = learning_rate
    return _render_template(
        "report.html",
        subject=subject,
        written=datetime.datetime.now().astimezone().isoformat(" ", "minutes"),
        charts={title: Markup(to_svg(figure, f"{title} by epoch")) for title, figure in charts.items()},
        style=Markup((_TEMPLATES / "style.css").read_text()),
        findings=Markup(findings),
    )


def read_findings(page: str, epoch: int) -> str | None:
    """Extracts the findings of `epoch` from a page; None if the page shows another epoch."""
    found = re.search(rf"<!-- findings of epoch {epoch} -->.*<!-- end of findings -->", page, re.DOTALL)
    return found and found[0]


def _render_template(name: str, **content: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name).render(content)


def _list_classes(diagnosis: Diagnosis, metrics: Metrics) -> list[dict[str, Any]]:
    """Returns the table's rows by falling AP50, with classes without objects last."""
    rows = []
    for each in diagnosis.classes:
        ap, ap50 = metrics.by_class.get(each.label, (0.0, 0.0))
        found = each.true_positives + each.false_positives
        row = {"label": each.label, "objects": each.objects, "ap": ap, "ap50": ap50, "found": found}
        row["precision"] = 100 * each.true_positives / found if found else None
        row["recall"] = 100 * each.true_positives / each.objects if each.objects else None
        row["curve"] = _svg_points(each)
        rows.append(row)
    return sorted(rows, key=lambda row: (row["objects"] > 0, row["ap50"]), reverse=True)


def _svg_points(diagnosis: ClassDiagnosis) -> str:
    """Returns the precision-recall curve as points of an SVG polyline, 0 to 100; "" for a class without objects."""
    if diagnosis.precision is None:
        return ""
    heights = (100 - 100 * diagnosis.precision).round(1).tolist()
    last = len(heights) - 1
    corners = (at for at in range(last + 1) if at in (0, last) or not heights[at - 1] == heights[at] == heights[at + 1])
    return " ".join(f"{at},{heights[at]:g}" for at in corners)


def _list_confusions(labels: Sequence[str], confusion: NDArray[np.int64]) -> list[dict[str, Any]]:
    """Returns the most frequent confusions between two classes."""
    mistaken = confusion[:-1, :-1].copy()
    np.fill_diagonal(mistaken, 0)
    most = np.argsort(-mistaken, axis=None, kind="stable")[:_CONFUSIONS]
    pairs = [(row, column) for row, column in zip(*np.unravel_index(most, mistaken.shape), strict=True)]
    return [
        {"true": labels[i], "found": labels[j], "count": int(mistaken[i, j]), "objects": int(confusion[i].sum())}
        for i, j in pairs
        if mistaken[i, j]
    ]


def _normalise(confusion: NDArray[np.int64]) -> list[list[float]]:
    """Divides each cell by the sum of its row, and the last row (false positives) by the sum of its column."""
    shares = confusion / confusion.sum(1, keepdims=True).clip(min=1)
    shares[-1] = confusion[-1] / confusion.sum(0).clip(min=1)
    rounded: list[list[float]] = shares.round(2).tolist()
    return rounded


def _render_photo(dataset: Dataset, diagnosis: Diagnosis, index: int, boxes_only: bool) -> dict[str, Any]:
    photo, outcome = dataset.photos[index], diagnosis.outcomes[index]
    picture = draw_outcome(photo, outcome, dataset, _LONGEST_SIDE, boxes_only)
    jpeg = encode(picture, "jpeg", [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    url = "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
    return {"name": photo.path.name, "outcome": outcome, "url": url}
