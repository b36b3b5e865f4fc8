"""The charts of a report, as SVG that takes the page's colours, light or dark."""

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

from training.diagnosis import CALIBRATED_FROM, THRESHOLDS, Calibration, Sweep

_INK = "#010203"  # the page's own colour of text, once in an SVG
_COLOURS = (
    "#3b82f6",
    "#f08c00",
    "#12a594",
    "#e5484d",
    "#a05bd6",
    "#8a8f98",
    "#c9a400",
    "#d6409f",
)  # on black and white
_STYLE: Any = {  # matplotlib's stubs want a literal type of all its keys
    "svg.fonttype": "none",  # letters stay letters: small, sharp, and found by a search
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
    """What a model finds, in per cent, and how long it takes for a photo."""

    name: str
    ap: float
    ap50: float
    milliseconds: float


def draw_precision(rows: Sequence[Row], size: tuple[float, float] = (4.6, 2.9)) -> Figure:
    """AP, AP50 and where there are joints theirs, by epoch; `size` is in inches."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _start(size)
        titles = {"ap50": "AP50", "ap": "AP", "keypoint_ap": "keypoint AP"}
        for key, title in ((key, title) for key, title in titles.items() if key in rows[-1]):
            axes.plot([row["epoch"] for row in rows], [row[key] for row in rows], marker="o", label=title)
        _label_epochs(axes, rows, "validation, per cent")
        axes.set_ylim(bottom=0)
        return figure


def draw_losses(rows: Sequence[Row]) -> Figure | None:
    """Each term's mean by epoch; None where none was written down."""
    terms = dict.fromkeys(name for row in rows for name, value in row.get("loss", {}).items() if value > 0)
    if not terms:
        return None
    with matplotlib.rc_context(_STYLE):
        figure, axes = _start()
        for term in terms:
            own = [row for row in rows if row.get("loss", {}).get(term, 0) > 0]
            axes.plot([row["epoch"] for row in own], [row["loss"][term] for row in own], marker="o", label=term)
        _label_epochs(axes, rows, "loss, weighted")
        axes.set_yscale("log")
        return figure


def draw_learning_rate(rows: Sequence[Row]) -> Figure | None:
    """The learning rate at the end of each epoch; None where none was written down."""
    own = [row for row in rows if "learning_rate" in row]
    if not own:
        return None
    with matplotlib.rc_context(_STYLE):
        figure, axes = _start()
        axes.plot([row["epoch"] for row in own], [row["learning_rate"] for row in own], marker="o")
        _label_epochs(axes, rows, "learning rate")
        axes.set_ylim(bottom=0)
        axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        return figure


def draw_sweep(sweep: Sweep) -> Figure:
    """Precision, recall and F1 by threshold, with the best one marked."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _start()
        for values, title in ((sweep.f1, "F1"), (sweep.precision, "precision"), (sweep.recall, "recall")):
            reached = slice(None) if title == "recall" else sweep.recall > 0
            axes.plot(THRESHOLDS[reached], values[reached], label=title)
        axes.axvline(float(THRESHOLDS[sweep.best]), color=_INK, linestyle=":", linewidth=1)
        _label(axes, "threshold", "")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.02)
        return figure


def draw_calibration(calibration: Calibration) -> Figure:
    """How often a detection is right by its score, beside the diagonal of equality, and how many there are."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(4.6, 3.6), layout="constrained")
        axes, counts = figure.subplots(2, height_ratios=(3, 1), sharex=True)
        filled = calibration.counts > 0
        axes.plot([0, 1], [0, 1], color=_INK, linestyle=":", linewidth=1, label="calibrated")
        right = calibration.share_right[filled]
        axes.plot(calibration.mean_score[filled], right, marker="o", label="this detector")
        axes.set_ylabel("share right")
        axes.set_ylim(0, 1.02)
        axes.legend()
        left_edges = [CALIBRATED_FROM + step / 10 for step in range(len(filled))]
        counts.bar(left_edges, calibration.counts, width=0.09, align="edge", color=_COLOURS[0])
        counts.set_xlabel("score")
        counts.set_ylabel("detections")
        counts.set_xlim(0, 1)
        counts.yaxis.set_major_locator(MaxNLocator(2, integer=True))
        return figure


def draw_trade_off(points: Sequence[Point], others: Sequence[Point]) -> Figure:
    """AP and AP50 by milliseconds a photo: `points` are joined by a line, `others` stand alone."""
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
            _label(axes, "milliseconds a photo, one thread", f"{title}, per cent")
            every = [*points, *others]  # with room for their names
            axes.set_xlim(0, 1.2 * max(each.milliseconds for each in every))
            axes.set_ylim(0, 1.15 * max(getattr(each, key) for each in every))
        return figure


def save_chart(figure: Figure, path: Path) -> None:
    """Writes a chart that stands alone, in the format of the suffix, and makes the folder where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(_STYLE):
        figure.savefig(path, dpi=120)


def to_svg(figure: Figure, title: str) -> str:
    """The chart as an element to stand in a page; `title` is for those who do not see it."""
    file = io.StringIO()
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": title}):  # or else its ids would meet those of other charts
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    drawn = file.getvalue()
    opening = f'<svg role="img" aria-label="{html.escape(title)}"'
    return drawn[drawn.index("<svg") :].replace("<svg", opening, 1).replace(_INK, "currentColor")


def _start(size: tuple[float, float] = (4.6, 2.9)) -> tuple[Figure, Axes]:
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
