"""What `python -m app bench` prints and writes, on a tiny model."""

import json
from pathlib import Path

import pytest

from app.__main__ import main
from app.bench.bench import Report
from tests.app.colours import PHOTO_PNG, encode, paint, save_rectangular_model


def bench(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["bench", *arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_parts_limit_and_server_are_measured(
    model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.png").write_bytes(PHOTO_PNG)
    flags = [f"--model={model_path}", "--provider=cpu", "--threads=1", "--instances=1", "--max-batch=2"]
    options = [f"--photos={tmp_path / 'photos'}", "--connections=1,3", "--seconds=0.3", f"--json={tmp_path / 'out'}"]
    assert bench(*options, *flags) == 0
    report = Report.model_validate(json.loads((tmp_path / "out").read_text()))
    assert (report.model, report.provider, report.photos) == ("colours", "cpu", ["one.png"])
    assert report.limit_images_per_second > 0
    assert report.square_ratio is None
    assert [load.connections for load in report.loads] == [1, 3]
    for load in report.loads:
        assert load.images_per_second == pytest.approx(load.of_limit * report.limit_images_per_second)
        assert 0 < load.p50_ms <= load.p99_ms
        assert list(load.stages_ms) == ["read", "decode", "queue", "inference", "encode", "rest"]
        assert all(milliseconds > 0 for milliseconds in load.stages_ms.values())
        assert sum(load.stages_ms.values()) < 3 * load.p99_ms
    table = capsys.readouterr().out
    assert all(f"| {name} |" in table for name in report.parts_ms)
    assert "--instances 1 --max-batch 2" in table


def test_operators_are_measured(model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("--operators", f"--model={model_path}", f"--json={tmp_path / 'out'}") == 0
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines()[2:]]
    assert {"Transpose", "ReduceMax", "TopK"} <= {row[1].strip() for row in rows}
    times = [float(row[2]) for row in rows]
    assert times == sorted(times, reverse=True) and times[0] > 0
    assert json.loads((tmp_path / "out").read_text()) == pytest.approx(
        {row[1].strip(): float(row[2]) for row in rows}, abs=0.0006
    )
    assert sum(float(row[3].strip().rstrip("%")) for row in rows) == pytest.approx(100, abs=0.2)


def test_rectangular_inputs_are_compared_with_square_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "wide.png").write_bytes(encode(paint(96, 64)))
    (tmp_path / "square.png").write_bytes(encode(paint(64, 64)))
    model = save_rectangular_model(tmp_path / "rectangles.onnx")
    flags = [f"--model={model}", "--provider=cpu", "--threads=1", "--instances=1", "--max-batch=1"]
    options = [f"--photos={tmp_path}", "--connections=1", "--seconds=0.1", f"--json={tmp_path / 'out'}"]
    assert bench(*options, *flags) == 0
    ratio = json.loads((tmp_path / "out").read_text())["square_ratio"]
    assert ratio > 0
    assert f"with square inputs, inference would take {ratio:.2f} x as long" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--photos=/nonexistent", "there is no photo in /nonexistent"),
        ("--model=/nonexistent.onnx", "there is no file /nonexistent.onnx"),
        ("--connections=many", "many"),
    ],
)
def test_unusable_arguments_are_reported(argument: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(argument) == 2
    assert message in capsys.readouterr().err


def test_settings_that_would_refuse_the_load_are_reported(
    model_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CENTERNET_API_KEYS", "secret")
    assert bench(f"--model={model_path}") == 2
    assert "api_keys must not be set" in capsys.readouterr().err


def test_unreadable_photo_is_reported(model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"hello")
    assert bench(f"--photos={tmp_path}", f"--model={model_path}", "--instances=1", "--max-batch=1") == 2
    assert "one of the photos cannot be used" in capsys.readouterr().err
