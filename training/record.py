"""What a run leaves to look at: how it was set up, TensorBoard's events, each epoch's figures, and the report."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from model.detector import Detections
from model.draw import draw_detections
from training.charts import draw_precision, save_chart
from training.config import Config
from training.datasets.dataset import Dataset
from training.environment import describe_environment
from training.loader import read_photo
from training.metrics import Metrics
from training.report import Subject, read_findings, render_findings, render_report, replace_text

_DRAWN_FROM = 0.3  # least score
_PICTURES = 6  # validation photos drawn each epoch


class Record:
    """Writes into `config`'s run folder; `first_step` is where a resumed run goes on: events from there are taken back.

    `git_commit` is that of the code that runs.
    """

    def __init__(self, config: Config, device: torch.device, git_commit: str, first_step: int) -> None:
        self._config = config
        self._folder = config.run_folder
        self._folder.mkdir(parents=True, exist_ok=True)
        self._git_commit = git_commit
        self._environment = describe_environment(str(device))
        replace_text(self._folder / "config.json", config.model_dump_json(indent=2) + "\n")
        facts = {"git_commit": git_commit} | self._environment
        replace_text(self._folder / "environment.json", json.dumps(facts, indent=2) + "\n")
        self._writer = SummaryWriter(str(self._folder), purge_step=first_step)
        self._loss_sums: defaultdict[str, float] = defaultdict(float)
        self._steps = 0  # of this epoch, and of this process: a resumed one has not seen the others
        self._learning_rate = 0.0
        self._findings = ""

    def begin_epoch(self) -> None:
        """What steps said before is forgotten: an epoch's figures are its own, though not each ends in a validation."""
        self._loss_sums.clear()
        self._steps = 0

    def add_step(self, step: int, terms: dict[str, Tensor], gradient_norm: Tensor, learning_rate: float) -> None:
        """The loss terms, the gradient's norm before clipping and the learning rate of one step."""
        for name, term in terms.items():
            value = term.item()
            self._writer.add_scalar(f"loss/{name}", value, step)
            self._loss_sums[name] += value
        self._writer.add_scalar("gradient_norm", gradient_norm.item(), step)
        self._writer.add_scalar("learning_rate", learning_rate, step)
        self._learning_rate = learning_rate
        self._steps += 1

    def add_epoch(
        self, epoch: int, step: int, metrics: Metrics, seconds: float, dataset: Dataset, detections: list[Detections]
    ) -> None:
        """The validation figures after whole epoch `epoch`, and what the photos show; `seconds` are the training's."""
        self._writer.add_scalar("val/AP", metrics.ap, step)
        self._writer.add_scalar("val/AP50", metrics.ap50, step)
        for photo, found in zip(dataset.photos[:_PICTURES], detections, strict=False):
            sure = found.select(found.scores >= _DRAWN_FROM)
            picture = draw_detections(read_photo(photo), sure, dataset.labels, dataset.skeleton)
            self._writer.add_image(f"val/{photo.id}", picture, step, dataformats="HWC")

        row: dict[str, Any] = {
            "epoch": epoch,
            "ap": round(metrics.ap, 6),
            "ap50": round(metrics.ap50, 6),
            "seconds": round(seconds, 1),
        }
        if self._steps:
            row["pictures_per_second"] = round(self._steps * self._config.batch_size / max(seconds, 1e-3), 1)
            row["learning_rate"] = self._learning_rate
            row["loss"] = {name: round(total / self._steps, 6) for name, total in self._loss_sums.items()}
        if metrics.keypoints:
            self._writer.add_scalar("val/keypoint_AP", metrics.keypoints.ap, step)
            row["keypoint_ap"] = round(metrics.keypoints.ap, 6)
        # killed between this and its checkpoint, a run comes by here again
        rows = [each for each in read_rows(self._folder) if each["epoch"] < epoch] + [row]
        replace_text(self._folder / "metrics.jsonl", "".join(json.dumps(each) + "\n" for each in rows))

        best_epoch = _best(rows)["epoch"]
        if best_epoch == epoch:
            self._findings = render_findings(dataset, detections, metrics, f"Epoch {epoch}, the best", epoch)
        elif not self._findings:  # resumed behind the best epoch, whose findings the page before still has
            page = self._folder / "report.html"
            self._findings = (page.exists() and read_findings(page.read_text("utf-8"), best_epoch)) or render_findings(
                dataset, detections, metrics, f"Epoch {epoch}", epoch
            )
        self._write_report(rows, f"running, epoch {epoch} of {self._config.epochs} done")
        save_chart(draw_precision(rows, size=(7, 4)), self._folder / "curve.png")

    def close(self) -> None:
        """Marks the run as finished, and writes out what TensorBoard's writer still holds."""
        self._writer.close()
        rows = read_rows(self._folder)
        if self._findings:  # an epoch was run
            self._write_report(rows, f"finished after {rows[-1]['epoch']} epochs")

    def _write_report(self, rows: list[dict[str, Any]], state: str) -> None:
        best, last = _best(rows), rows[-1]
        speed = {"an epoch's training": f"{last['seconds']:.0f} s"}
        if "pictures_per_second" in last:
            speed["pictures a second"] = f"{last['pictures_per_second']:.1f}"
        figures = {"AP": "ap", "AP50": "ap50", "keypoint AP": "keypoint_ap"}
        reached = ", ".join(f"{title} {best[key]:.1f}" for title, key in figures.items() if key in best)
        subject = Subject(
            self._config.name,
            f"{state}; best {reached} at epoch {best['epoch']}",
            self._config.dataset,
            self._git_commit,
            self._config.model_dump(mode="json"),
            speed | self._environment,
        )
        replace_text(self._folder / "report.html", render_report(subject, rows, self._findings))


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """Each epoch's figures, from a run's folder; none where it has none."""
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _best(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The epoch whose weights are kept as the best, as `Metrics.task_ap` has it: of equals the first."""
    return max(rows, key=lambda row: float(row.get("keypoint_ap", row["ap"])))
