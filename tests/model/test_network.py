import pytest
import torch

from model.backbones.efficientnet_lite import efficientnet_lite0
from model.backbones.resnet import resnet18
from model.network import BACKBONES, CenterNet


@pytest.mark.parametrize("backbone", BACKBONES)
def test_head_maps_have_a_cell_for_every_four_pixels(backbone: str) -> None:
    network = CenterNet(backbone, class_count=7).eval()
    heatmap, size, offset = network(torch.zeros(2, 64, 96, 3, dtype=torch.uint8))
    assert heatmap.shape == (2, 7, 16, 24)
    assert size.shape == offset.shape == (2, 2, 16, 24)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_backbone_stages_hold_every_parameter_once(backbone: str) -> None:
    network = BACKBONES[backbone]()
    staged = [p for stage in network.stages() for module in stage for p in module.parameters()]
    assert len(staged) == len({id(p) for p in staged}) == len(list(network.parameters()))


def test_parameter_counts_are_the_published_ones_without_classifier() -> None:
    def count(module: torch.nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    head_and_classifier = 320 * 1280 + 2 * 1280 + 1280 * 1000 + 1000
    assert count(efficientnet_lite0()) == 4_652_008 - head_and_classifier
    assert count(resnet18()) == 11_689_512 - (512 * 1000 + 1000)


def test_resnet_keys_are_those_of_torchvision() -> None:
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    keys = {"conv1.weight", *(f"bn1.{n}" for n in norm)}
    for layer in range(1, 5):
        for block in range(2):
            for index in (1, 2):
                keys |= {f"layer{layer}.{block}.conv{index}.weight"}
                keys |= {f"layer{layer}.{block}.bn{index}.{n}" for n in norm}
        if layer > 1:
            keys |= {f"layer{layer}.0.downsample.0.weight", *(f"layer{layer}.0.downsample.1.{n}" for n in norm)}
    assert set(resnet18().state_dict()) == keys


def test_a_new_network_is_unsure_of_everything() -> None:
    torch.manual_seed(0)
    network = CenterNet("resnet18", class_count=3).train()
    images = torch.randint(0, 256, (4, 64, 64, 3), dtype=torch.uint8)
    assert 0.05 < network(images).heatmap.sigmoid().mean() < 0.2


def test_freezing_statistics_folds_batch_norm_without_changing_the_result() -> None:
    torch.manual_seed(0)
    backbone = efficientnet_lite0()
    for module in backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    x = torch.randn(1, 3, 64, 64)
    block = backbone._blocks[3].eval()
    y = torch.randn(1, 24, 16, 16)
    plain = y
    for conv, norm in (("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")):
        plain = block.get_submodule(norm)(block.get_submodule(conv)(plain))
        plain = plain.clamp(0, 6) if conv != "_project_conv" else plain
    torch.testing.assert_close(block(y), plain, atol=1e-4, rtol=1e-4)
    assert len(backbone.eval()(x)) == 4
