import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch

from tests.training.cases import perfect
from tests.training.configs import small_config
from tests.training.pages import Page
from training.datasets.dataset import Dataset
from training.datasets.load import load_dataset
from training.evaluation.keypoint_metrics import KeypointMetrics
from training.evaluation.metrics import Metrics, measure
from training.learner import Step
from training.record import Record


@pytest.fixture(scope="module")
def dataset(shapes: Path) -> Dataset:
    return load_dataset(shapes / "val.json", shapes / "images")


def score(dataset: Dataset, ap: float) -> Metrics:
    return dataclasses.replace(measure(dataset, perfect(dataset)), ap=ap, ap50=2 * ap)


def make_record(shapes: Path, output: Path) -> Record:
    return Record(small_config(shapes, output, epochs=3), torch.device("cpu"), "abc123", 0)


def add_epoch(record: Record, epoch: int, ap: float, best_epoch: int, dataset: Dataset, loss: float = 2.0) -> None:
    record.begin_epoch()
    for step in range(2):
        terms = {"heatmap": torch.tensor(loss + step), "giou": torch.tensor(0.5)}
        record.add_step(step, Step(terms, torch.tensor(1.0), 1e-3 / epoch))
    validate(record, epoch, score(dataset, ap), best_epoch, dataset)


def validate(record: Record, epoch: int, metrics: Metrics, best_epoch: int, dataset: Dataset) -> None:
    found = {"dataset": dataset, "detections": perfect(dataset)}
    record.add_epoch(epoch, 2 * epoch, metrics, best_epoch=best_epoch, seconds=4.0, **found)


def read_rows(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_run_records_each_epoch_and_reports_the_best(shapes: Path, tmp_path: Path, dataset: Dataset) -> None:
    record = make_record(shapes, tmp_path)
    folder = tmp_path / "test"
    for epoch, ap, best_epoch in ((1, 10.0, 1), (2, 30.0, 2), (3, 20.0, 2)):
        add_epoch(record, epoch, ap, best_epoch, dataset)
        text = Page((folder / "report.html").read_text()).text
        assert f"running, epoch {epoch} of 3 done" in text
        assert f"Epoch {best_epoch} (best)" in text
    record.close()
    text = Page((folder / "report.html").read_text()).text
    assert "finished after 3 epochs; best AP 30.0, AP50 60.0 at epoch 2" in text
    assert "30.0 AP 60.0 AP50" in re.sub(r"\s+", " ", text)
    rows = read_rows(folder)
    assert [row["ap"] for row in rows] == [10, 30, 20]
    assert rows[2]["loss"] == {"heatmap": 2.5, "giou": 0.5}
    assert rows[2]["images_per_second"] == 4  # two steps of 8 images in 4 seconds
    assert rows[1]["learning_rate"] == 5e-4
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["git_commit"] == "abc123"
    assert environment["torch"] == torch.__version__
    assert json.loads((folder / "config.json").read_text())["epochs"] == 3
    assert not list(folder.glob("*.tmp"))


def test_resumed_run_repeats_no_row_and_keeps_findings_of_the_best_epoch(
    shapes: Path, tmp_path: Path, dataset: Dataset
) -> None:
    folder = tmp_path / "test"
    record = make_record(shapes, tmp_path)
    add_epoch(record, 1, 30.0, 1, dataset)
    add_epoch(record, 2, 20.0, 1, dataset)  # then killed before its checkpoint is written
    resumed = make_record(shapes, tmp_path)
    add_epoch(resumed, 2, 25.0, 1, dataset)
    resumed.close()
    assert [(row["epoch"], row["ap"]) for row in read_rows(folder)] == [(1, 30), (2, 25)]
    page = (folder / "report.html").read_text()
    assert "Epoch 1 (best)" in page
    assert page.count("<!-- findings of epoch 1 -->") == 1

    (folder / "report.html").unlink()
    lost = make_record(shapes, tmp_path)
    add_epoch(lost, 3, 20.0, 1, dataset)
    lost.close()
    page = (folder / "report.html").read_text()
    assert "<h2>Epoch 3</h2>" in page
    assert "best AP 30.0, AP50 60.0 at epoch 1" in page


def test_keypoint_ap_is_reported(shapes: Path, tmp_path: Path, dataset: Dataset) -> None:
    record = make_record(shapes, tmp_path)
    for epoch, ap, keypoint_ap in ((1, 10.0, 40.0), (2, 20.0, 30.0)):
        joints = KeypointMetrics(keypoint_ap, 90.0, 30.0)
        metrics = dataclasses.replace(score(dataset, ap), keypoints=joints)
        validate(record, epoch, metrics, 1, dataset)
    record.close()
    text = Page((tmp_path / "test" / "report.html").read_text()).text
    assert "best AP 10.0, AP50 20.0, keypoint AP 40.0 at epoch 1" in text
    assert "40.0 keypoint AP" in text


def test_rows_of_older_runs_are_rendered(shapes: Path, tmp_path: Path, dataset: Dataset) -> None:
    record = make_record(shapes, tmp_path)
    old = {"epoch": 1, "ap": 5.0, "ap50": 10.0, "seconds": 3.0}
    (tmp_path / "test" / "metrics.jsonl").write_text(json.dumps(old) + "\n")
    add_epoch(record, 2, 20.0, 2, dataset)
    record.close()
    assert read_rows(tmp_path / "test")[0] == old
    assert "Loss terms" in (tmp_path / "test" / "report.html").read_text()
