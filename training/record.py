"""Records a training run: configuration, environment, TensorBoard events, metrics of validated epochs, the report."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from model.detector import Detections
from model.draw import draw_detections
from training.config import Config
from training.datasets.dataset import Dataset
from training.environment import describe_environment
from training.evaluation.metrics import Metrics
from training.files import write_json, write_text
from training.learner import Step
from training.loader import read_photo
from training.report.charts import draw_precision, save_chart
from training.report.report import Subject, read_findings, render_findings, render_report

_MIN_DRAWN_SCORE = 0.3
_DRAWN_PHOTOS = 6  # validation photos drawn each epoch


class Record:
    """Writes into the run folder of `config`.

    `git_commit` is that of the running code. `first_step` is the step from which a run resumes: TensorBoard events from
    there on are discarded.
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
        self._steps = 0  # of this epoch in this process: a resumed run does not know earlier ones
        self._learning_rate = 0.0
        self._best_epoch = 0
        self._findings = ""

    def begin_epoch(self) -> None:
        """Resets the means of losses and speed, which are per epoch, even if the last epoch was not validated."""
        self._loss_sums.clear()
        self._steps = 0

    def add_step(self, number: int, step: Step) -> None:
        """Records one step; `number` counts the steps of the whole run from 0."""
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
        """Records the validation after epoch `epoch`, `step` steps into the run.

        `best_epoch` is the epoch of the best weights, `seconds` the training time of this epoch, and `detections` are
        one per photo of `dataset`, in its order.
        """
        self._writer.add_scalar("val/AP", metrics.ap, step)
        self._writer.add_scalar("val/AP50", metrics.ap50, step)
        for photo, found in zip(dataset.photos[:_DRAWN_PHOTOS], detections, strict=False):
            drawn = found.select(found.scores >= _MIN_DRAWN_SCORE)
            picture = draw_detections(read_photo(photo), drawn, dataset.labels, dataset.skeleton)
            self._writer.add_image(f"val/{photo.id}", picture, step, dataformats="HWC")

        row: dict[str, Any] = {
            "epoch": epoch,
            "ap": round(metrics.ap, 6),
            "ap50": round(metrics.ap50, 6),
            "seconds": round(seconds, 1),
        }
        if self._steps:
            row["images_per_second"] = round(self._steps * self._config.batch_size / max(seconds, 1e-3), 1)
            row["learning_rate"] = self._learning_rate
            row["loss"] = {name: round(total / self._steps, 6) for name, total in self._loss_sums.items()}
        if metrics.keypoints:
            self._writer.add_scalar("val/keypoint_AP", metrics.keypoints.ap, step)
            row["keypoint_ap"] = round(metrics.keypoints.ap, 6)
        # a run killed before the next checkpoint repeats this epoch
        rows = [each for each in read_rows(self._folder) if each["epoch"] < epoch] + [row]
        write_text(self._folder / "metrics.jsonl", "".join(json.dumps(each) + "\n" for each in rows))

        self._best_epoch = best_epoch
        if best_epoch == epoch:
            self._findings = render_findings(dataset, detections, metrics, f"Epoch {epoch} (best)", epoch)
        elif not self._findings:  # resumed after the best epoch: the previous page still has its findings
            page = self._folder / "report.html"
            self._findings = (page.exists() and read_findings(page.read_text("utf-8"), best_epoch)) or render_findings(
                dataset, detections, metrics, f"Epoch {epoch}", epoch
            )
        self._write_report(rows, f"running, epoch {epoch} of {self._config.epochs} done")
        save_chart(draw_precision(rows, size=(7, 4)), self._folder / "curve.png")

    def close(self) -> None:
        """Marks the run as finished and flushes TensorBoard's writer."""
        self._writer.close()
        rows = read_rows(self._folder)
        if self._findings:  # at least one epoch was recorded
            self._write_report(rows, f"finished after {rows[-1]['epoch']} epochs")

    def _write_report(self, rows: list[dict[str, Any]], state: str) -> None:
        last = rows[-1]
        best = next((row for row in rows if row["epoch"] == self._best_epoch), {})  # missing if metrics.jsonl was lost
        speed = {"training time per epoch": f"{last['seconds']:.0f} s"}
        if "images_per_second" in last:
            speed["images per second"] = f"{last['images_per_second']:.1f}"
        metrics = {"AP": "ap", "AP50": "ap50", "keypoint AP": "keypoint_ap"}
        best_metrics = ", ".join(f"{title} {best[key]:.1f}" for title, key in metrics.items() if key in best)
        subject = Subject(
            name=self._config.name,
            state=f"{state}; best {best_metrics}{' ' if best_metrics else ''}at epoch {self._best_epoch}",
            dataset=self._config.dataset,
            git_commit=self._git_commit,
            configuration=self._config.model_dump(mode="json"),
            environment=speed | self._environment,
        )
        write_text(self._folder / "report.html", render_report(subject, rows, self._findings))


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """Reads the metrics of each validated epoch from a run folder; empty if it has none."""
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
