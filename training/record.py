"""What a run leaves to look at: TensorBoard's events, the figures of every epoch, and their curve."""

import json
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from model.detector import Detections
from training.datasets.dataset import Dataset
from training.draw import draw_predictions
from training.metrics import Metrics

_PICTURES = 6  # validation photos drawn each epoch


class Record:
    """Writes into `run_folder`; `first_step` is where a resumed run goes on: events from there on are taken back."""

    def __init__(self, run_folder: Path, first_step: int) -> None:
        self._folder = run_folder
        self._writer = SummaryWriter(str(run_folder), purge_step=first_step)

    def add_step(self, step: int, terms: dict[str, Tensor], gradient_norm: Tensor, learning_rate: float) -> None:
        """The loss terms, the gradient's norm before clipping and the learning rate of one step."""
        for name, term in terms.items():
            self._writer.add_scalar(f"loss/{name}", term.item(), step)
        self._writer.add_scalar("gradient_norm", gradient_norm.item(), step)
        self._writer.add_scalar("learning_rate", learning_rate, step)

    def add_epoch(
        self, epoch: int, step: int, metrics: Metrics, seconds: float, dataset: Dataset, detections: list[Detections]
    ) -> None:
        """The validation figures after whole epoch `epoch`, and some photos with what was found in them."""
        self._writer.add_scalar("val/AP", metrics.ap, step)
        self._writer.add_scalar("val/AP50", metrics.ap50, step)
        for photo, found in zip(dataset.photos[:_PICTURES], detections, strict=False):
            picture = draw_predictions(photo, found, dataset.labels, dataset.skeleton)
            self._writer.add_image(f"val/{photo.id}", picture, step, dataformats="HWC")
        row = {"epoch": epoch, "ap": round(metrics.ap, 3), "ap50": round(metrics.ap50, 3), "seconds": round(seconds, 1)}
        if metrics.keypoints:
            self._writer.add_scalar("val/keypoint_AP", metrics.keypoints.ap, step)
            row |= {"keypoint_ap": round(metrics.keypoints.ap, 3)}
        with (self._folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        self._draw_curve()

    def close(self) -> None:
        """Writes out what TensorBoard's writer still holds."""
        self._writer.close()

    def _draw_curve(self) -> None:
        rows = [json.loads(line) for line in (self._folder / "metrics.jsonl").read_text().splitlines()]
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        titles = {"ap50": "AP50", "ap": "AP", "keypoint_ap": "keypoint AP"}
        for key, title in ((key, title) for key, title in titles.items() if key in rows[-1]):
            axes.plot([row["epoch"] for row in rows], [row[key] for row in rows], marker="o", label=title)
        axes.set_xlabel("epoch")
        axes.set_ylabel("validation, per cent")
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
        figure.savefig(self._folder / "curve.png", dpi=120)
