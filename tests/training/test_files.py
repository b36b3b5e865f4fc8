import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from training.__main__ import main
from training.files import write_json, write_text
from training.report.charts import Point, draw_trade_off, save_chart


def test_missing_folders_are_created(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "figures.json"
    write_json(path, {"name": "é", "ap": 1.5})
    assert json.loads(path.read_text()) == {"name": "é", "ap": 1.5}
    assert path.read_text().endswith("\n}\n")
    assert list(path.parent.iterdir()) == [path]
    chart = tmp_path / "c" / "chart.png"
    save_chart(draw_trade_off([Point("a", 10, 30, 4)], []), chart)
    assert chart.read_bytes().startswith(b"\x89PNG")


def test_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_text(path, "before")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "after \ud800")  # an unpaired surrogate
    assert path.read_text() == "before"


def test_pipe_is_written_to_and_kept(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as reader:
        text = reader.submit(pipe.read_text)
        write_text(pipe, "figures")
        assert text.result(30) == "figures"
    assert pipe.is_fifo()


@pytest.mark.parametrize(
    ("command", "flag", "name"),
    [
        (["bench", "training/configs/tiny.toml"], "--json", "speed.json"),
        (["evaluate", "none.pt"], "--json", "figures.json"),
        (["evaluate", "none.pt"], "--report", "pages"),
        (["evaluate", "none.pt"], "--report", "page.html"),
        (["compare", "none.onnx"], "--json", "figures.json"),
        (["compare", "none.onnx"], "--chart", "chart.svg"),
        (["export", "none.pt", "none.onnx", "--precision", "fp16"], "--report", "report.json"),
    ],
)
def test_unwritable_output_path_is_reported_before_any_work(
    command: list[str], flag: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="2"):
        main([*command, flag, str(tmp_path / "file" / "folder" / name)])
    assert capsys.readouterr().err.startswith(f"centernet-train: {flag}: {tmp_path}/file/folder")


def test_folder_as_output_file_is_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["evaluate", "none.pt", "--json", str(tmp_path)])
    assert f"--json: {tmp_path} is a folder, but must be a file" in capsys.readouterr().err
