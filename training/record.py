"""What a run leaves to look at: how it was set up, TensorBoard's events, each epoch's figures, and the report."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from model.detector import Detections
from model.draw import draw_detections
from training.charts import draw_precision, save_chart
from training.config import Config
from training.datasets.dataset import Dataset
from training.environment import describe_environment
from training.files import write_json, write_text
from training.learner import Step
from training.loader import read_photo
from training.metrics import Metrics
from training.report import Subject, read_findings, render_findings, render_report

_DRAWN_FROM = 0.3  # least score
_PICTURES = 6  # validation photos drawn each epoch


class Record:
    """Writes into `config`'s run folder; `first_step` is where a resumed run goes on: events from there are taken back.

    `git_commit` is that of the code that runs.
    """

    def __init__(self, config: Config, device: torch.device, git_commit: str, first_step: int) -> None:
        self._config = config
        self._folder = config.run_folder
        self._git_commit = git_commit
        self._environment = describe_environment(str(device))
        write_json(self._folder / "config.json", config.model_dump(mode="json"))
        write_json(self._folder / "environment.json", {"git_commit": git_commit} | self._environment)
        self._writer = SummaryWriter(str(self._folder), purge_step=first_step)
        self._loss_sums: defaultdict[str, float] = defaultdict(float)
        self._steps = 0  # of this epoch, and of this process: a resumed one has not seen the others
        self._learning_rate = 0.0
        self._best_epoch = 0
        self._findings = ""

    def begin_epoch(self) -> None:
        """Begins the means of losses and speed anew: they are of one epoch, also where the last was not validated."""
        self._loss_sums.clear()
        self._steps = 0

    def add_step(self, number: int, step: Step) -> None:
        """What one step found; `number` counts the steps of the whole run from 0."""
        for name, term in step.losses.items():
            value = term.item()
            self._writer.add_scalar(f"loss/{name}", value, number)
            self._loss_sums[name] += value
        self._writer.add_scalar("gradient_norm", step.gradient_norm.item(), number)
        self._writer.add_scalar("learning_rate", step.learning_rate, number)
        self._learning_rate = step.learning_rate
        self._steps += 1

    def add_epoch(
        self,
        epoch: int,
        step: int,
        metrics: Metrics,
        *,
        best_epoch: int,
        seconds: float,
        dataset: Dataset,
        detections: list[Detections],
    ) -> None:
        """Writes down what validation found when whole epoch `epoch` was over, `step` steps into the run.

        `best_epoch` is the one whose weights are kept as the best, `seconds` what the epoch's training took, and
        `detections` are those in each photo of `dataset`, in its order.
        """
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
        write_text(self._folder / "metrics.jsonl", "".join(json.dumps(each) + "\n" for each in rows))

        self._best_epoch = best_epoch
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
        last = rows[-1]
        best = next((row for row in rows if row["epoch"] == self._best_epoch), {})  # a lost file has no row of it
        speed = {"an epoch's training": f"{last['seconds']:.0f} s"}
        if "pictures_per_second" in last:
            speed["pictures a second"] = f"{last['pictures_per_second']:.1f}"
        figures = {"AP": "ap", "AP50": "ap50", "keypoint AP": "keypoint_ap"}
        reached = ", ".join(f"{title} {best[key]:.1f}" for title, key in figures.items() if key in best)
        subject = Subject(
            name=self._config.name,
            state=f"{state}; best {reached}{' ' if reached else ''}at epoch {self._best_epoch}",
            dataset=self._config.dataset,
            git_commit=self._git_commit,
            configuration=self._config.model_dump(mode="json"),
            environment=speed | self._environment,
        )
        write_text(self._folder / "report.html", render_report(subject, rows, self._findings))


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """Each epoch's figures, from a run's folder; none where it has none."""
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
