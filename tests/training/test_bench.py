import json
import re
from pathlib import Path

import pytest

from training.__main__ import main
from training.speed import Speed

CONFIGS = Path(__file__).parents[2] / "training" / "configs"


def run(shapes: Path, *flags: str) -> None:
    sizes = ["--input-size", "64", "--batch-size", "8", "--workers", "0", "--frozen-stages", "5", "--generate", "0"]
    main(["bench", str(CONFIGS / "tiny.toml"), "--data-root", str(shapes), "--seconds", "0.1", *sizes, *flags])


def test_configuration_is_measured_and_compared(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = ["--precision", "bf16", "--against", "precision=fp32", "--against", "precision=fp32,batch-size=4"]
    run(shapes, *settings, "--json", "figures/speed.json")
    found = json.loads(Path("figures/speed.json").read_text())
    speeds = found["images_per_second"]
    assert min(speeds["loader alone"], speeds["step alone"]) * found["both_of_the_slower"] == pytest.approx(
        speeds["both together"]
    )
    assert set(found["step_alone_images_per_second"]) == {
        "as it is set",
        "precision = fp32",
        "precision = fp32, batch_size = 4",
    }
    assert 0.1e9 < found["peak_memory_bytes"] < 20e9
    assert (found["settings"]["precision"], found["settings"]["batch_size"]) == ("bf16", 8)
    printed = " ".join(capsys.readouterr().out.split())
    assert "efficientnet_lite0 at 64 px, batches of 8, bf16 on cpu, 1 threads and 0 workers" in printed
    assert re.search(r"as it is set │ +[\d.]+ │ +1.00", printed)
    assert [path.name for path in tmp_path.iterdir()] == ["figures"]  # no run folder


def test_efficiency_is_relative_to_the_slower_part() -> None:
    assert Speed(16, loader=0.5, step=1.0, both=1.25).efficiency == pytest.approx(0.8)
    assert Speed(16, loader=2.0, step=1.0, both=2.0).efficiency == 1
    assert Speed(16, loader=2.0, step=1.0, both=2.0).images_per_second() == {
        "loader alone": 8, "step alone": 16, "both together": 8
    }  # fmt: skip


@pytest.mark.parametrize(
    ("against", "message"),
    [("precision", "write settings as"), ("precision=fp8", "precision"), ("speed=1", "not a setting")],
)
def test_invalid_override_is_named(
    shapes: Path, capsys: pytest.CaptureFixture[str], against: str, message: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(shapes, "--against", against)
    assert message in capsys.readouterr().err
