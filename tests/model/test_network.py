from collections.abc import Callable

import pytest
import torch

from model.backbones.dla import Tree, dla34
from model.backbones.efficientnet_lite import efficientnet_lite0, efficientnet_lite1, efficientnet_lite2
from model.backbones.resnet import ResNet, resnet18, resnet34, resnet50, resnet101
from model.necks.transposed import TransposedNeck
from model.network import BACKBONES, NECKS, CenterNet


@pytest.mark.parametrize("neck", NECKS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_head_maps_have_a_cell_for_every_four_pixels(backbone: str, neck: str) -> None:
    network = CenterNet(backbone, class_count=7, neck=neck).eval()
    maps = network(torch.zeros(2, 64, 96, 3, dtype=torch.uint8))
    assert maps.heatmap.shape == (2, 7, 16, 24)
    assert maps.size.shape == maps.offset.shape == (2, 2, 16, 24)


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


def test_keys_of_the_papers_necks_are_those_of_the_authors() -> None:
    plain, deformable = (NECKS[name]((64, 128, 256, 512), 64).state_dict() for name in ("transposed", "deformable"))
    plain_keys, deformable_keys = set[str](), set[str]()
    for step in range(3):
        plain_keys |= {f"deconv_layers.{3 * step}.weight", *(f"deconv_layers.{3 * step + 1}.{n}" for n in _NORM)}
        bent, up = 6 * step, 6 * step + 3
        deformable_keys |= {f"deconv_layers.{bent}.{n}" for n in ("weight", "bias")}
        deformable_keys |= {f"deconv_layers.{bent}.conv_offset_mask.{n}" for n in ("weight", "bias")}
        deformable_keys |= {f"deconv_layers.{up}.weight"}
        deformable_keys |= {f"deconv_layers.{at + 1}.{n}" for at in (bent, up) for n in _NORM}
    assert set(plain) == plain_keys
    assert set(deformable) == deformable_keys
    assert plain["deconv_layers.0.weight"].shape == (512, 256, 4, 4)
    assert deformable["deconv_layers.6.weight"].shape == (128, 256, 3, 3)
    assert deformable["deconv_layers.12.conv_offset_mask.weight"].shape == (27, 128, 3, 3)
    assert deformable["deconv_layers.15.weight"].shape == (64, 64, 4, 4)


def test_steps_between_equal_widths_begin_as_bilinear_enlargement() -> None:
    neck = NECKS["transposed"]((64, 128, 256, 512), 256)
    assert isinstance(neck, TransposedNeck)
    x = torch.rand(1, 256, 5, 7)
    smooth = torch.nn.functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
    inner = (slice(None), slice(None), slice(1, -1), slice(1, -1))  # the border fades into zeros
    torch.testing.assert_close(neck.deconv_layers[3](x)[inner], smooth[inner])


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
