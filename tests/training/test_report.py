import dataclasses
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from model.detector import Detections
from tests.training.cases import perfect
from tests.training.configs import small_config
from tests.training.pages import Page
from training.__main__ import main
from training.datasets.dataset import Dataset, Object, make_photo
from training.datasets.load import load_dataset
from training.evaluation.diagnosis import diagnose
from training.evaluation.metrics import measure
from training.report.draw import COLOURS, draw_outcome
from training.report.report import Subject, render_findings, render_report
from training.weights.checkpoint import Checkpoint, build_network


@pytest.fixture(scope="module")
def dataset(shapes: Path) -> Dataset:
    return load_dataset(shapes / "val.json", shapes / "images")


def no_detections(dataset: Dataset) -> list[Detections]:
    return [found.select(np.zeros(len(found.scores), bool)) for found in perfect(dataset)]


def render(dataset: Dataset, detections: list[Detections]) -> str:
    metrics = measure(dataset, detections)
    subject = Subject("a name", "measured", "the data", "abc123", {"backbone": "resnet18"}, {"python": "3.11"})
    return render_report(subject, (), render_findings(dataset, detections, metrics, "Figures", 0))


def with_labels(dataset: Dataset, count: int) -> Dataset:
    """Returns the same photos with their objects spread over `count` classes."""
    photos = tuple(dataclasses.replace(each, labels=each.labels % count) for each in dataset.photos)
    labels = tuple(f"class {index}" for index in range(count))
    return dataclasses.replace(dataset, labels=labels, label_ids=tuple(range(count)), photos=photos)


def test_page_is_self_contained_and_has_no_scripts(dataset: Dataset) -> None:
    page = render(dataset, perfect(dataset))
    parsed = Page(page)
    pictures = [source for source in parsed.sources if source.startswith("data:image/jpeg;base64,")]
    assert len(pictures) == len(dataset.photos)
    assert all(source.startswith(("#", "data:image/jpeg")) for source in parsed.sources)
    assert not {"script", "link", "iframe"} & set(parsed.tags)
    assert "url(http" not in page
    assert "@import" not in page


def test_page_shows_metrics_confusions_and_facts(dataset: Dataset) -> None:
    found = perfect(dataset)
    labels = found[0].labels.copy()
    true, mistaken = labels[0], (labels[0] + 1) % 3
    objects = sum(int((photo.labels == true).sum()) for photo in dataset.photos)
    labels[0] = mistaken
    found[0] = dataclasses.replace(found[0], labels=labels)
    text = Page(render(dataset, found)).text
    assert f"{dataset.labels[true]} detected as {dataset.labels[mistaken]} : 1 of {objects}" in text
    total = sum(len(photo.labels) for photo in dataset.photos)
    share = (total - 1) / total
    assert f"precision {100 * share:.1f} %" in text
    assert f"recall {100 * share:.1f} %" in text
    assert f"F1 {share:.3f}" in text
    for fact in ("a name", "abc123", "resnet18", "the data"):
        assert fact in text


def test_worst_photo_comes_first_and_is_not_among_the_best(dataset: Dataset) -> None:
    found = perfect(dataset)
    found[2] = found[2].select(np.zeros(len(found[2].scores), bool))
    page = render(dataset, found)
    worst, best = page[page.index('id="worst"') : page.index('id="best"')], page[page.index('id="best"') :]
    shown = [re.findall(r"<small>(.*?)</small>", part) for part in (worst, best)]
    name = dataset.photos[2].path.name
    assert shown[0][0] == name
    assert sorted(shown[0] + shown[1]) == sorted(photo.path.name for photo in dataset.photos)
    assert f"F1 0.00: 0 found, {len(dataset.photos[2].labels)} missed, 0 false" in worst


def test_page_without_photos_shows_boxes_only(dataset: Dataset) -> None:
    photo = dataset.photos[0]
    outcome = diagnose(dataset, perfect(dataset)).outcomes[0]
    bare, whole = (draw_outcome(photo, outcome, dataset, 480, boxes_only) for boxes_only in (True, False))
    assert bare.shape == whole.shape
    is_grey = [(picture == 60).all(-1).mean() for picture in (bare, whole)]
    assert is_grey[0] > 0.5 > is_grey[1]
    assert (bare == COLOURS["true positive"]).all(-1).any()
    metrics = measure(dataset, perfect(dataset))
    pages = [
        render_findings(dataset, perfect(dataset), metrics, "Figures", 0, boxes_only) for boxes_only in (False, True)
    ]
    assert Page(pages[0]).text == Page(pages[1]).text
    pictures = [{source for source in Page(page).sources if source.startswith("data:")} for page in pages]
    assert len(pictures[0]) == len(pictures[1]) == len(dataset.photos)
    assert not pictures[0] & pictures[1]


@pytest.mark.parametrize("count", [1, 80])
def test_page_renders_few_and_many_classes(dataset: Dataset, count: int) -> None:
    data = with_labels(dataset, count)
    page = render(data, perfect(data))
    matrix = page[page.index('class="matrix"') :]
    matrix = matrix[: matrix.index("</table>")]
    assert matrix.count("<td") == (count + 1) ** 2
    classes = page[page.index('class="figures"') : page.index('id="precision-recall"')]
    assert classes.count("<tr>") == count + 1
    with_objects = len({label for photo in data.photos for label in photo.labels.tolist()})
    assert page.count("<polyline") == with_objects


def test_page_renders_without_detections(dataset: Dataset) -> None:
    text = Page(render(dataset, no_detections(dataset))).text
    assert "No detection has a score of 0.1 or more." in text
    assert "No class was confused with another." in text
    assert "0.0 AP" in text


def test_labels_are_escaped(dataset: Dataset) -> None:
    data = dataclasses.replace(dataset, labels=("<img src=x onerror=alert(1)>", "a & b", "$x$"))
    page = render(data, perfect(data))
    assert "<img src=x" not in page
    assert {"<img src=x onerror=alert(1)>", "a & b", "$x$"} <= set(Page(page).pieces)


def test_true_positives_false_positives_and_misses_have_their_colours(tmp_path: Path) -> None:
    path = tmp_path / "grey.png"
    cv2.imwrite(str(path), np.full((200, 400, 3), 90, np.uint8))
    hit, alarm, missed, crowd = (20, 50, 80, 150), (120, 50, 180, 150), (220, 50, 280, 150), (320, 50, 380, 150)
    objects = [Object(hit, 0), Object(missed, 0), Object(crowd, 0, is_ignored=True)]
    photo = make_photo(1, path, 400, 200, objects)
    data = Dataset(Path("x.json"), ("cat",), (1,), (photo,))
    boxes = np.array([hit, alarm, crowd], np.float32)
    [outcome] = diagnose(data, [Detections(boxes, np.full(3, 0.9, np.float32), np.zeros(3, np.int64))]).outcomes
    picture = draw_outcome(photo, outcome, data, 400)
    edges = [tuple(picture[100, box[0]].tolist()) for box in (hit, alarm, missed, crowd)]
    assert edges == [COLOURS[name] for name in ("true positive", "false positive", "missed", "ignored")]
    assert draw_outcome(photo, outcome, data, 100).shape == (50, 100, 3)


@pytest.mark.parametrize("target", ["folder", "folder/page.html"])
def test_evaluate_writes_a_report(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], target: str
) -> None:
    config = small_config(shapes, tmp_path)
    weights = build_network(config, 3).state_dict()
    path = tmp_path / "random.pt"
    Checkpoint(config, ("circle", "square", "triangle"), (1, 2, 3), weights, 0, "abc123").save(path)
    main(["evaluate", str(path), "--report", str(tmp_path / target)])
    page = tmp_path / (target if target.endswith(".html") else f"{target}/report.html")
    assert "wrote" in capsys.readouterr().out
    text = Page(page.read_text()).text
    assert f"evaluation of {path}" in text
    assert "Learning rate" not in text
    assert str(shapes / "val.json") in text
    (tmp_path / "metrics.jsonl").write_text(
        '{"epoch": 1, "ap": 1.0, "ap50": 2.0, "learning_rate": 0.001}\n'
    )  # of its run
    main(["evaluate", str(path), "--report", str(tmp_path / target)])
    assert "Learning rate" in Page(page.read_text()).text
