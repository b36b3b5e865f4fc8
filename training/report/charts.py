"""Charts of the report, as SVG that follows the page's light or dark colours."""

import dataclasses
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from training.evaluation.diagnosis import CALIBRATION_MIN_SCORE, THRESHOLDS, Calibration, Sweep

_INK = "#010203"  # placeholder, replaced by the page's text colour in SVG
_COLOURS = (
    "#3b82f6",
    "#f08c00",
    "#12a594",
    "#e5484d",
    "#a05bd6",
    "#8a8f98",
    "#c9a400",
    "#d6409f",
)  # legible on black and on white
_STYLE: Any = {  # matplotlib's stubs expect a literal type of all keys
    "svg.fonttype": "none",  # text stays text: small, sharp and searchable
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.2,
    "legend.frameon": False,
    "lines.markersize": 3,
    "axes.prop_cycle": cycler(color=_COLOURS),
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "grid.color"), _INK),
    **dict.fromkeys(("xtick.color", "ytick.color"), _INK),
}

Row = Mapping[str, Any]  # of metrics.jsonl


@dataclasses.dataclass(frozen=True)
class Point:
    """Accuracy of a model, in per cent, and its time per photo."""

    name: str
    ap: float
    ap50: float
    milliseconds: float


def draw_precision(rows: Sequence[Row], size: tuple[float, float] = (4.6, 2.9)) -> Figure:
    """Plots AP, AP50 and, if present, keypoint AP by epoch; `size` is in inches."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _new_figure(size)
        titles = {"ap50": "AP50", "ap": "AP", "keypoint_ap": "keypoint AP"}
        for key, title in ((key, title) for key, title in titles.items() if key in rows[-1]):
            axes.plot([row["epoch"] for row in rows], [row[key] for row in rows], marker="o", label=title)
        _label_epochs(axes, rows, "validation AP, per cent")
        axes.set_ylim(bottom=0)
        return figure


def draw_losses(rows: Sequence[Row]) -> Figure | None:
    """Plots the mean of each loss term by epoch; None if no losses were recorded."""
    terms = dict.fromkeys(name for row in rows for name, value in row.get("loss", {}).items() if value > 0)
    if not terms:
        return None
    with matplotlib.rc_context(_STYLE):
        figure, axes = _new_figure()
        for term in terms:
            plotted = [row for row in rows if row.get("loss", {}).get(term, 0) > 0]
            axes.plot([row["epoch"] for row in plotted], [row["loss"][term] for row in plotted], marker="o", label=term)
        _label_epochs(axes, rows, "weighted loss")
        axes.set_yscale("log")
        return figure


def draw_learning_rate(rows: Sequence[Row]) -> Figure | None:
    """Plots the learning rate at the end of each epoch; None if none was recorded."""
    recorded = [row for row in rows if "learning_rate" in row]
    if not recorded:
        return None
    with matplotlib.rc_context(_STYLE):
        figure, axes = _new_figure()
        axes.plot([row["epoch"] for row in recorded], [row["learning_rate"] for row in recorded], marker="o")
        _label_epochs(axes, rows, "learning rate")
        axes.set_ylim(bottom=0)
        axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        return figure


def draw_sweep(sweep: Sweep) -> Figure:
    """Plots precision, recall and F1 by score threshold, and marks the best threshold."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _new_figure()
        for values, title in ((sweep.f1, "F1"), (sweep.precision, "precision"), (sweep.recall, "recall")):
            reached = slice(None) if title == "recall" else sweep.recall > 0
            axes.plot(THRESHOLDS[reached], values[reached], label=title)
        axes.axvline(float(THRESHOLDS[sweep.best]), color=_INK, linestyle=":", linewidth=1)
        _label(axes, "score threshold", "")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.02)
        return figure


def draw_calibration(calibration: Calibration) -> Figure:
    """Plots a reliability diagram: precision by score, with the diagonal, above a histogram of scores."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(4.6, 3.6), layout="constrained")
        axes, counts = figure.subplots(2, height_ratios=(3, 1), sharex=True)
        filled = calibration.counts > 0
        axes.plot([0, 1], [0, 1], color=_INK, linestyle=":", linewidth=1, label="perfectly calibrated")
        axes.plot(calibration.mean_score[filled], calibration.precision[filled], marker="o", label="this detector")
        axes.set_ylabel("precision")
        axes.set_ylim(0, 1.02)
        axes.legend()
        left_edges = [CALIBRATION_MIN_SCORE + step / 10 for step in range(len(filled))]
        counts.bar(left_edges, calibration.counts, width=0.09, align="edge", color=_COLOURS[0])
        counts.set_xlabel("score")
        counts.set_ylabel("detections")
        counts.set_xlim(0, 1)
        counts.yaxis.set_major_locator(MaxNLocator(2, integer=True))
        return figure


def draw_trade_off(points: Sequence[Point], others: Sequence[Point]) -> Figure:
    """Plots AP and AP50 by milliseconds per photo: `points` as a line, `others` as single points."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(9.2, 3.6), layout="constrained")
        for axes, title, key in zip(figure.subplots(1, 2), ("AP", "AP50"), ("ap", "ap50"), strict=True):
            ordered = sorted(points, key=lambda point: point.milliseconds)
            groups = ((ordered, _COLOURS[0], "-"), (others, _COLOURS[5], "none"))
            for group, colour, line in groups:
                x, y = [each.milliseconds for each in group], [getattr(each, key) for each in group]
                axes.plot(x, y, linestyle=line, marker="o", markersize=5, color=colour)
                for point in group:
                    place = (point.milliseconds, getattr(point, key))
                    axes.annotate(point.name, place, (0, 6), textcoords="offset points", ha="center", color=colour)
            _label(axes, "milliseconds per photo, one thread", f"{title}, per cent")
            every = [*points, *others]  # limits leave room for the names
            axes.set_xlim(0, 1.2 * max(each.milliseconds for each in every))
            axes.set_ylim(0, 1.15 * max(getattr(each, key) for each in every))
        return figure


def save_chart(figure: Figure, path: Path) -> None:
    """Writes a chart to a file, in the format of the suffix; creates the folder if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(_STYLE):
        figure.savefig(path, dpi=120)


def to_svg(figure: Figure, title: str) -> str:
    """Returns the chart as an inline SVG element; `title` is its text alternative for screen readers."""
    file = io.StringIO()
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": title}):  # keeps ids unique among the charts of a page
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=no_metadata)
    svg = file.getvalue()
    opening = f'<svg role="img" aria-label="{html.escape(title)}"'
    return svg[svg.index("<svg") :].replace("<svg", opening, 1).replace(_INK, "currentColor")


def _new_figure(size: tuple[float, float] = (4.6, 2.9)) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots()


def _label_epochs(axes: Axes, rows: Sequence[Row], y: str) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlim(rows[0]["epoch"] - 0.5, rows[-1]["epoch"] + 0.5)
    _label(axes, "epoch", y)


def _label(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
