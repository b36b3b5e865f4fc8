import re
from pathlib import Path

import cv2
import pytest
import torch

from training import dry_run as dry_running
from training.__main__ import main
from training.speed import Speed

CONFIGS = Path(__file__).parents[2] / "training" / "configs"


def on_shapes(shapes: Path, output: Path) -> list[str]:
    return ["--data-root", str(shapes), "--generate", "0", "--output", str(output)]


def test_dry_run_measures_throughput_and_writes_only_an_image(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dry_running, "_SECONDS", 0.1)
    flags = [*on_shapes(shapes, tmp_path), "--workers", "1", "--precision", "fp32"]
    sizes = ["--input-size", "64", "--first-train-size", "32", "--batch-size", "8", "--accumulate", "2"]
    main(["train", str(CONFIGS / "tiny.toml"), "--dry-run", "--frozen-stages", "5", *flags, *sizes])
    text = " ".join(capsys.readouterr().out.split())
    rates = {
        title: (float(rate), float(seconds))
        for title, rate, seconds in re.findall(r"(\w+ \w+) ([\d.]+) images/s, ([\d.]+) s a step", text)
    }
    assert set(rates) == {"loader alone", "step alone", "both together"}
    for rate, seconds in rates.values():
        assert rate * seconds == pytest.approx(8, rel=0.2)  # seconds are rounded to three decimals
    slower = "loader" if rates["loader alone"][1] > rates["step alone"][1] else "step"
    assert f"the {slower} limits" in text
    assert "an epoch of 3 steps" in text
    total, trained = (int(each.replace(",", "")) for each in re.search(r"([\d,]+) parameters, ([\d,]+)", text).groups())  # type: ignore[union-attr]
    assert total - trained == 4_652_008 - 1_693_160  # EfficientNet-Lite0 without the layers after its last feature map
    [memory] = re.findall(r"memory: peak ([\d.]+) GB", text)
    assert 0.1 < float(memory) < 20
    assert cv2.imread(str(tmp_path / "tiny" / "dry-run.jpg")).shape == (4 * 64, 4 * 2 * 64, 3)  # at the final size
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["dry-run.jpg"]


def test_slow_loader_is_named_as_the_limit(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = Speed(batch_size=16, loader=2.0, step=0.5, both=2.1)
    monkeypatch.setattr(dry_running, "measure_speed", lambda *_, **__: slow)
    command = ["train", str(CONFIGS / "tiny.toml"), "--dry-run", *on_shapes(shapes, tmp_path)]
    main([*command, "--workers", "3"])
    text = " ".join(capsys.readouterr().out.split())
    assert "loader alone 8.0 images/s, 2.000 s a step" in text
    assert "the loader limits: more than 3 workers" in text
    main([*command, "--device", "cpu"])
    text = " ".join(capsys.readouterr().out.split())
    assert "without workers loader and step take turns: 80% of the time is the loader's" in text
    assert not torch.distributed.is_initialized()
