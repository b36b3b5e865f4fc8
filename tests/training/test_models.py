import pytest
import torch

from model.network.centernet import BACKBONES
from training.__main__ import main
from training.models import build, count_macs


def read_tables(capsys: pytest.CaptureFixture[str], size: int) -> tuple[list[list[str]], list[list[str]]]:
    main(["models", "--size", str(size), "--classes", "3"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines]
    return rows[: len(BACKBONES)], rows[len(BACKBONES) :]


def test_tables_have_every_backbone_with_its_published_size_and_the_papers_networks(
    capsys: pytest.CaptureFixture[str],
) -> None:
    backbones, papers = read_tables(capsys, 128)
    assert [row[0] for row in backbones] == list(BACKBONES)
    for name, alone, published, whole, macs in backbones:
        assert published == ("-" if name == "hourglass104" else alone)
        assert float(whole) > float(alone)
        assert float(macs) > 0
    assert [(row[0], row[1], row[4]) for row in papers] == [
        ("resnet18", "deformable", "28.1"),
        ("resnet101", "deformable", "34.6"),
        ("dla34", "aggregation", "37.4"),
        ("hourglass104", "none", "40.3"),
    ]
    assert all(float(row[3]) > 0 for row in papers)


def test_size_that_a_backbone_does_not_accept_has_no_gmacs(capsys: pytest.CaptureFixture[str]) -> None:
    backbones, papers = read_tables(capsys, 64)
    for rows, column in ((backbones, 4), (papers, 3)):
        assert [row[0] for row in rows if row[column] == "n x 128"] == ["hourglass104"]


def test_invalid_size_is_rejected(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["models", "--size", "100"])
    assert "multiple of 32" in capsys.readouterr().err


def test_macs_equal_those_of_the_convolutions_and_a_hundred_boxes() -> None:
    network = build("resnet18", "top_down", 64, 3)
    boxes = 100 * sum(
        layer.weight.numel() for head in (network.size_head, network.offset_head) for layer in (head[0], head[2])
    )
    macs = count_macs(network, 64) - boxes
    assert count_macs(network, 128) - boxes == 4 * macs
    counted = 0

    def count(module: torch.nn.Module, _: object, y: torch.Tensor) -> None:
        nonlocal counted
        assert isinstance(module, torch.nn.Conv2d)
        counted += y.shape[2] * y.shape[3] * module.weight.numel()

    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(count)
    network(torch.zeros(1, 64, 64, 3, dtype=torch.uint8, device="meta"))
    assert counted == macs
