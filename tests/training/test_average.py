import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.training.configs import small_config
from training.__main__ import main
from training.weights.checkpoint import Checkpoint, build_network, load_checkpoint


def write_checkpoint(
    shapes: Path, path: Path, seed: int, labels: tuple[str, ...] = ("a", "b", "c"), **settings: Any
) -> Path:
    torch.manual_seed(seed)
    config = small_config(shapes, path.parent, name=path.stem, seed=seed, **settings)
    weights = build_network(config, len(labels)).state_dict()
    figures = {"ap": 12.0, "ap50": 20.0, "keypoint_ap": 30.0, "progress": {"epoch": 3}}
    Checkpoint(config, labels, tuple(range(len(labels))), weights, 3, "0123abc", **figures).save(path)
    return path


def write_run(origin: Path, seed: int) -> Path:
    """Writes the checkpoint of a run that started from the weights of `origin`."""
    torch.manual_seed(seed)
    start = load_checkpoint(origin)
    moved = {
        key: value + 0.5 * value.std() * torch.randn_like(value) if value.dim() == 4 else value
        for key, value in start.weights.items()
    }
    path = origin.with_name(f"{origin.stem}-{seed}.pt")
    dataclasses.replace(start, weights=moved).save(path)
    return path


def test_average_is_a_checkpoint_of_mean_weights(shapes: Path, tmp_path: Path) -> None:
    first = write_checkpoint(shapes, tmp_path / "0.pt", 0)
    paths = [first, *(write_run(first, seed) for seed in (1, 2))]
    main(["average", *map(str, paths), str(tmp_path / "mean.pt")])
    mean, parts = load_checkpoint(tmp_path / "mean.pt"), [load_checkpoint(path) for path in paths]
    for key, value in mean.weights.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, sum(part.weights[key] for part in parts) / 3)
    of_one_run = {"ap": None, "ap50": None, "keypoint_ap": None, "progress": None}
    assert dataclasses.replace(mean, weights={}) == dataclasses.replace(parts[0], weights={}, **of_one_run)
    mean.build_network()


def test_no_command_overwrites_a_checkpoint(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [str(write_checkpoint(shapes, tmp_path / f"{seed}.pt", seed)) for seed in range(3)]
    before = Path(paths[-1]).read_bytes()
    for command, message in (
        (["average", *paths], f"{paths[-1]} exists: give the output file last"),
        (["import", *paths[1:]], f"{paths[-1]} exists: give the output file last"),
        (["import", paths[0], str(tmp_path / "model.onnx")], "must end in .pt"),
        (["export", paths[0], paths[-1]], "must end in .onnx"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(command)
        assert message in capsys.readouterr().err
        assert Path(paths[-1]).read_bytes() == before


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"neck_width": 16}, "different networks"),
        ({"mean": (1, 2, 3), "std": (1, 1, 1)}, "different mean or std"),
        ({"pretrained": "resnet18.pth"}, "one.pt and .*other.pt: neck and heads started from different random weights"),
        ({"labels": ("a", "b", "z")}, "different labels"),
        (None, "at least two checkpoints"),
    ],
)
def test_incompatible_checkpoints_are_rejected(
    other: dict[str, object] | None, message: str, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [write_checkpoint(shapes, tmp_path / "one.pt", 0)]
    if other is not None:
        paths.append(write_checkpoint(shapes, tmp_path / "other.pt", 1, **other))  # type: ignore[arg-type]
    with pytest.raises(SystemExit, match="2"):
        main(["average", *map(str, paths), str(tmp_path / "mean.pt")])
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "mean.pt").exists()


@pytest.mark.parametrize("first_new", [0, 2])
def test_runs_whose_new_labels_differ_are_rejected(
    first_new: int, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = write_checkpoint(shapes, tmp_path / "0.pt", 0)
    runs = [write_run(first, seed) for seed in (1, 2)]
    for seed, path in enumerate(runs):  # as with labels that the checkpoint lacks
        torch.manual_seed(seed)
        run = load_checkpoint(path)
        head = run.weights["heatmap_head.2.weight"].clone()
        nn.init.normal_(head[first_new:], std=0.1)
        dataclasses.replace(run, weights=run.weights | {"heatmap_head.2.weight": head}).save(path)
    with pytest.raises(SystemExit, match="2"):
        main(["average", *map(str, runs), str(tmp_path / "mean.pt")])
    assert "different random weights (heatmap_head.2), which" in capsys.readouterr().err


def test_checkpoint_with_an_unknown_setting_is_named(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_checkpoint(shapes, tmp_path / "one.pt", 0)
    content = torch.load(path)
    content["config"]["zzz"] = 1
    torch.save(content, path)
    with pytest.raises(SystemExit, match="2"):
        main(["average", str(path), str(path), str(tmp_path / "mean.pt")])
    assert capsys.readouterr().err == f"centernet-train: {path}: zzz is not a setting\n"
