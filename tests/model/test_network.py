from collections.abc import Callable

import pytest
import torch

from model.backbones.dla import Tree, dla34
from model.backbones.efficientnet_lite import efficientnet_lite0, efficientnet_lite1, efficientnet_lite2
from model.backbones.resnet import ResNet, resnet18, resnet34, resnet50, resnet101
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

    def lite_classifier(channels: int) -> int:
        return channels * 1280 + 2 * 1280 + 1280 * 1000 + 1000

    assert count(efficientnet_lite0()) == 4_652_008 - lite_classifier(320)
    assert count(efficientnet_lite1()) == 5_416_680 - lite_classifier(320)
    assert count(efficientnet_lite2()) == 6_092_072 - lite_classifier(352)
    assert count(resnet18()) == 11_689_512 - (512 * 1000 + 1000)
    assert count(resnet34()) == 21_797_672 - (512 * 1000 + 1000)
    assert count(resnet50()) == 25_557_032 - (2048 * 1000 + 1000)
    assert count(resnet101()) == 44_549_160 - (2048 * 1000 + 1000)
    assert count(dla34()) == 15_742_104 - (512 * 1000 + 1000)


_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


@pytest.mark.parametrize(
    ("build", "repeats", "convolutions"), [(resnet18, (2, 2, 2, 2), 2), (resnet50, (3, 4, 6, 3), 3)]
)
def test_resnet_keys_are_those_of_torchvision(
    build: Callable[[], ResNet], repeats: tuple[int, ...], convolutions: int
) -> None:
    keys = {"conv1.weight", *(f"bn1.{n}" for n in _NORM)}
    for layer, blocks in enumerate(repeats, start=1):
        for block in range(blocks):
            for index in range(1, convolutions + 1):
                keys |= {f"layer{layer}.{block}.conv{index}.weight"}
                keys |= {f"layer{layer}.{block}.bn{index}.{n}" for n in _NORM}
        if layer > 1 or convolutions == 3:
            keys |= {f"layer{layer}.0.downsample.0.weight", *(f"layer{layer}.0.downsample.1.{n}" for n in _NORM)}
    assert set(build().state_dict()) == keys


def test_dla_keys_are_those_of_its_authors() -> None:
    def conv_bn(convolution: str, norm: str) -> set[str]:
        return {f"{convolution}.weight", *(f"{norm}.{n}" for n in _NORM)}

    keys: set[str] = set()
    for stem in ("base_layer", "level0", "level1"):
        keys |= conv_bn(f"{stem}.0", f"{stem}.1")
    trees = ["level2", "level3.tree1", "level3.tree2", "level4.tree1", "level4.tree2", "level5"]
    for tree in trees:
        for block in ("tree1", "tree2"):
            keys |= conv_bn(f"{tree}.{block}.conv1", f"{tree}.{block}.bn1")
            keys |= conv_bn(f"{tree}.{block}.conv2", f"{tree}.{block}.bn2")
        keys |= conv_bn(f"{tree}.root.conv", f"{tree}.root.bn")
        if not tree.endswith(".tree2"):  # the others change the number of channels
            keys |= conv_bn(f"{tree}.project.0", f"{tree}.project.1")
    assert set(dla34().state_dict()) == keys


def test_dla_tree_merges_what_the_paper_says() -> None:
    torch.manual_seed(0)
    tree = Tree(2, 4, 6, stride=2, has_level_root=True).eval()
    x = torch.randn(1, 4, 8, 8)
    bottom = torch.nn.functional.max_pool2d(x, 2)
    one, two = tree.tree1, tree.tree2
    first = one.tree1(x, one.project(bottom))
    second = one.tree2(first, first)
    left = one.root(second, first)
    third = two.tree1(left, left)
    fourth = two.tree2(third, third)
    torch.testing.assert_close(tree(x), two.root(fourth, third, bottom, left))


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
