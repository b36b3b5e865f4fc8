from pathlib import Path

import pytest
from rich.console import Console

from training.__main__ import main
from training.log import Log
from training.progress import progress_bar

SETTINGS = """
name = "logged"
dataset = "shapes"
backbone = "resnet18"
neck_width = 8
head_width = 8
input_size = 64
epochs = 1
batch_size = 8
workers = 0
"""


def test_run_logs_its_output_and_a_resumed_run_appends(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "logged.toml"
    path.write_text(SETTINGS)
    command = ["train", str(path), "--data-root", str(shapes), "--output", str(tmp_path)]
    main(command)
    log = tmp_path / "logged" / "log.txt"
    first = log.read_text()
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "24 photos to train on, 6 to validate on"
    lines = first.splitlines()
    assert len(lines[1:-1]) == 4
    assert lines[1] == printed[0]
    assert "epoch 1/1: AP" in lines[3]
    assert lines[-1].endswith(" ended")

    with pytest.raises(SystemExit):
        main(command)
    main([*command, "--resume"])
    whole = log.read_text()
    assert whole.startswith(first)
    assert "stopped by InvalidConfig" in whole
    assert "last.pt exists: continue it with --resume" in whole
    assert "at epoch 2, step 0" in whole
    assert len([line for line in whole.splitlines() if line.endswith(" ended")]) == 2


def test_rejected_run_leaves_no_folder(shapes: Path, tmp_path: Path) -> None:
    path = tmp_path / "logged.toml"
    path.write_text(SETTINGS)
    with pytest.raises(SystemExit):
        main(["train", str(path), "--data-root", str(tmp_path), "--output", str(tmp_path)])
    assert not (tmp_path / "logged").exists()


def test_log_of_an_overfitted_run_is_in_its_own_folder(shapes: Path, tmp_path: Path) -> None:
    path = tmp_path / "logged.toml"
    path.write_text(SETTINGS)
    data = ["--data-root", str(shapes), "--output", str(tmp_path)]
    main(["train", str(path), *data, "--overfit", "1", "--batch-size", "1"])
    assert (tmp_path / "logged-overfit" / "log.txt").read_text().splitlines()[-1].endswith(" ended")
    assert not (tmp_path / "logged").exists()


def test_log_file_has_no_colours_or_progress_bars(tmp_path: Path) -> None:
    with (tmp_path / "terminal").open("w") as terminal:
        console = Console(file=terminal, force_terminal=True, width=40)
        with Log(console, tmp_path / "log.txt"):
            with progress_bar(console, "title", 2) as advance:
                advance(images=1)
                console.print("[red]a fault[/red] that is [b]longer[/b] than the terminal is wide")
                advance(images=1)
            console.print("[not markup", markup=False)
        console.print("afterwards")

    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert lines[1:-1] == ["a fault that is longer than the terminal is wide", "[not markup"]
    assert "\x1b" in (tmp_path / "terminal").read_text()
