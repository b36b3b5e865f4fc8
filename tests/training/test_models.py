import pytest
import torch

from model.network import BACKBONES
from training.__main__ import main
from training.models import build_and_count


def test_table_has_every_backbone_with_its_published_size(capsys: pytest.CaptureFixture[str]) -> None:
    main(["models", "--size", "64", "--classes", "3"])
    rows = [line.split("│")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert [row[0].strip() for row in rows] == list(BACKBONES)
    for _, alone, published, whole, macs in rows:
        assert float(alone) == float(published)
        assert float(whole) > float(alone)
        assert float(macs) > 0


def test_size_that_does_not_fit_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["models", "--size", "100"])
    assert "multiple of 32" in capsys.readouterr().err


def test_multiply_accumulates_are_those_of_the_convolutions() -> None:
    network, macs = build_and_count("resnet18", 64, 3)
    _, larger = build_and_count("resnet18", 128, 3)
    assert larger == 4 * macs
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
