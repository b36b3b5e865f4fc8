"""The shipped models have the size, labels and AP that the model card states."""

import os
import re
from pathlib import Path

import pytest
from rich.console import Console

from app.settings import find_shipped_model
from model.detector import Detector
from training.datasets.load import load_dataset
from training.evaluation.evaluate import detect_with_model
from training.evaluation.metrics import measure

PHOTOS = Path(os.environ.get("CENTERNET_PHOTOS", Path(__file__).parents[2] / "shared" / "data" / "photos"))


@pytest.fixture(scope="module", params=["default", "default-fp32", "fast"])
def detector(request: pytest.FixtureRequest) -> Detector:
    return Detector(find_shipped_model(request.param), "cpu")


def test_model_file_is_at_most_25_mb_and_has_the_20_labels(detector: Detector) -> None:
    assert detector.path.stat().st_size <= 25e6
    assert detector.metadata.threshold is not None
    assert {"person", "dog", "car"} <= set(detector.metadata.labels)
    assert len(detector.metadata.labels) == 20


def test_readme_states_the_ap_in_the_models_metadata(detector: Detector) -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    [row] = re.findall(rf"^\| `{detector.metadata.name}` .*?\| ([\d.]+) \| ([\d.]+) \|", readme, re.MULTILINE)
    stated = [float(figure) for figure in row]
    # the metadata has two decimals, the README one
    assert stated == pytest.approx([detector.metadata.ap, detector.metadata.ap50], abs=0.051)


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="needs the validation photos: set CENTERNET_PHOTOS to their folder")
def test_ap_on_the_validation_photos_is_as_stated(detector: Detector) -> None:
    dataset = load_dataset(PHOTOS / "val.json", PHOTOS / "images")
    metrics = measure(dataset, detect_with_model(detector, dataset, Console(quiet=True)))
    assert metrics.ap == pytest.approx(detector.metadata.ap, abs=0.05)
    assert metrics.ap50 == pytest.approx(detector.metadata.ap50, abs=0.05)
