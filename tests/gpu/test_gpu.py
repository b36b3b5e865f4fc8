"""Tests on a GPU, skipped without one; and tests of `make check-gpu` on the CPU."""

import json
from pathlib import Path

import numpy as np
import pytest

from app.settings import find_shipped_model
from model.detector import Detector
from model.gpu import Gpu, ProviderUnavailable
from tests.app.colours import PHOTO, PHOTO_PNG, save_model
from tests.gpu.__main__ import NO_GPU, main
from tests.gpu.agreement import detect_each, measure_agreement


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "colours.onnx")


@pytest.fixture(scope="module")
def has_gpu(model_path: Path) -> bool:
    try:
        Detector(model_path, "cuda", 1)
    except ProviderUnavailable:
        return False
    return True


@pytest.mark.parametrize("gpu", [Gpu(), Gpu(cuda_graphs=True)])
def test_cuda_detections_agree_with_the_cpus_at_every_batch_size(has_gpu: bool, gpu: Gpu) -> None:
    if not has_gpu:
        pytest.skip("needs a GPU")
    cpu, cuda = Detector(find_shipped_model(), "cpu"), Detector(find_shipped_model(), "cuda", gpu=gpu)
    rng = np.random.default_rng(0)
    canvases = [cpu.prepare(PHOTO[:, : rng.integers(64, 192)]).pixels for _ in range(9)]
    expected = detect_each(cpu, canvases, 1)
    for size in (1, 4, 8, 4, 1):
        assert measure_agreement(expected, detect_each(cuda, canvases, size)) > 0.95


def test_agreement_is_the_share_of_common_detections(model_path: Path) -> None:
    detector = Detector(model_path, "cpu", 1)
    canvas = detector.prepare(PHOTO_PNG).pixels
    [both], [first] = detector.infer([canvas]), detector.infer([canvas[:, :48].repeat(2, axis=1)])
    assert measure_agreement([both], [both]) == 1
    assert measure_agreement([both], [both.select(slice(1))]) == pytest.approx((1 + 1) / (3 + 1))
    assert measure_agreement([both], [first]) < 0.5
    assert [len(each.scores) for each in detect_each(detector, [canvas] * 3, 2)] == [3, 3, 3]


def test_check_without_a_gpu_exits_with_77(has_gpu: bool, model_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if has_gpu:
        pytest.skip("there is a GPU")
    assert main(["--model", str(model_path)]) == NO_GPU
    assert capsys.readouterr().err.startswith("no GPU: ")


def test_check_reports_agreement_and_throughputs(
    model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tests.gpu.__main__.SIZES", (1, 2))
    monkeypatch.setattr("tests.gpu.__main__.time_runs", lambda work, _: work(0) and 0.5)
    out = tmp_path / "out.json"
    flags = ["--provider", "cpu", "--connections", "2", "--seconds", "0.3", "--json", str(out)]
    status = main(["--model", str(model_path), *flags])
    [(name, found)] = json.loads(out.read_text())["ways"].items()
    assert (name, found["agreement"], found["fault"]) == ("cpu", 1.0, "")
    assert found["bare"] == found["bound"] == {"1": 2.0, "2": 4.0}
    assert found["reached"] == pytest.approx(found["served"]["2"] / 4.0)
    assert found["reached"] > 0.9 and status == 0
    assert "cpu, 2 clients: " in capsys.readouterr().out
