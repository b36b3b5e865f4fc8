from collections.abc import Callable

import pytest
import torch

from model.network.backbones.dla import Tree, dla34
from model.network.backbones.efficientnet_lite import efficientnet_lite0, efficientnet_lite1, efficientnet_lite2
from model.network.backbones.hourglass import Hourglass, HourglassModule
from model.network.backbones.resnet import ResNet, resnet18, resnet34, resnet50, resnet101
from model.network.centernet import BACKBONES, NECKS, CenterNet, describe_backbone, fitting_necks
from model.network.necks.aggregation import AggregationNeck
from model.network.necks.top_down import TopDownNeck
from model.network.necks.transposed import TransposedNeck, bilinear_kernel


@pytest.mark.parametrize(("backbone", "neck"), [(name, neck) for name in BACKBONES for neck in fitting_necks(name)])
def test_head_maps_have_a_cell_for_every_four_pixels(backbone: str, neck: str) -> None:
    stride = describe_backbone(backbone).coarsest_stride
    with torch.device("meta"):  # shapes alone
        network = CenterNet(backbone, class_count=7, neck=neck).eval()
        maps = network(torch.zeros(2, 2 * stride, 3 * stride, 3, dtype=torch.uint8))
    cells = (2 * stride // 4, 3 * stride // 4)
    assert maps.heatmap.shape == (2, 7, *cells)
    assert maps.size.dense().shape == maps.offset.dense().shape == (2, 2, *cells)


def test_every_neck_fits_some_backbone_and_no_neck_fits_only_hourglasses() -> None:
    fitting = {backbone: fitting_necks(backbone) for backbone in BACKBONES}
    assert {neck for necks in fitting.values() for neck in necks} == set(NECKS)
    assert [backbone for backbone, necks in fitting.items() if "none" in necks] == ["hourglass104"]


@pytest.mark.parametrize("backbone", BACKBONES)
def test_backbone_maps_have_the_declared_channels_and_strides(backbone: str) -> None:
    with torch.device("meta"):
        network = BACKBONES[backbone]().eval()
        stride = network.coarsest_stride
        maps = network(torch.zeros(1, 3, stride, 2 * stride))
    expected = [(1, c, stride // s, 2 * stride // s) for c, s in zip(network.channels, network.strides, strict=True)]
    assert [each.shape for each in maps] == expected


@pytest.mark.parametrize("backbone", BACKBONES)
def test_backbone_stages_hold_every_parameter_once(backbone: str) -> None:
    with torch.device("meta"):
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
        deform, up = 6 * step, 6 * step + 3
        deformable_keys |= {f"deconv_layers.{deform}.{n}" for n in ("weight", "bias")}
        deformable_keys |= {f"deconv_layers.{deform}.conv_offset_mask.{n}" for n in ("weight", "bias")}
        deformable_keys |= {f"deconv_layers.{up}.weight"}
        deformable_keys |= {f"deconv_layers.{at + 1}.{n}" for at in (deform, up) for n in _NORM}
    assert set(plain) == plain_keys
    assert set(deformable) == deformable_keys
    assert plain["deconv_layers.0.weight"].shape == (512, 256, 4, 4)
    assert deformable["deconv_layers.6.weight"].shape == (128, 256, 3, 3)
    assert deformable["deconv_layers.12.conv_offset_mask.weight"].shape == (27, 128, 3, 3)
    assert deformable["deconv_layers.15.weight"].shape == (64, 64, 4, 4)


def test_steps_between_equal_widths_start_as_bilinear_upsampling() -> None:
    neck = NECKS["transposed"]((64, 128, 256, 512), 256)
    assert isinstance(neck, TransposedNeck)
    x = torch.rand(1, 256, 5, 7)
    smooth = torch.nn.functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
    inner = (slice(None), slice(None), slice(1, -1), slice(1, -1))  # the border fades into zeros
    torch.testing.assert_close(neck.deconv_layers[3](x)[inner], smooth[inner])


@pytest.mark.parametrize("factor", [2, 4])
def test_bilinear_kernel_upsamples_like_interpolate(factor: int) -> None:
    x = torch.rand(1, 1, 6, 5)
    large = torch.nn.functional.conv_transpose2d(x, bilinear_kernel(factor)[None, None], None, factor, factor // 2)
    smooth = torch.nn.functional.interpolate(x, scale_factor=float(factor), mode="bilinear", align_corners=False)
    inner = (..., slice(factor, -factor), slice(factor, -factor))
    torch.testing.assert_close(large[inner], smooth[inner])


def test_aggregation_projects_channels_that_do_not_double() -> None:
    neck = AggregationNeck((24, 64, 100, 30), 32).train()
    maps = [torch.randn(2, c, 16 // 2**level, 24 // 2**level) for level, c in enumerate((24, 64, 100, 30))]
    merged = neck(maps)
    assert merged.shape == (2, 32, 16, 24)
    merged.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in neck.parameters())
    upsampled = [each for each in neck.modules() if isinstance(each, torch.nn.ConvTranspose2d)]
    assert {each.stride for each in upsampled} == {(2, 2), (4, 4)}
    for each in upsampled:
        assert (each.weight == bilinear_kernel(each.stride[0])).all()
    assert [type(lateral) for lateral in neck.laterals] == [torch.nn.Sequential, torch.nn.Identity, torch.nn.Sequential]


def test_top_down_neck_merges_every_map_and_crops_one_that_was_rounded_up() -> None:
    torch.manual_seed(0)
    neck = TopDownNeck((3, 4, 5), 8).eval()
    maps = [torch.randn(1, *shape, requires_grad=True) for shape in ((3, 12, 20), (4, 6, 10), (5, 3, 5))]
    assert neck(maps).shape == (1, 8, 12, 20)
    odd = [torch.randn(1, *shape, requires_grad=True) for shape in ((3, 20, 12), (4, 10, 6), (5, 5, 3))]
    odd[2] = torch.randn(1, 5, 6, 4, requires_grad=True)
    merged = neck(odd)
    assert merged.shape == (1, 8, 20, 12)
    merged.sum().backward()
    assert all(each.grad is not None and each.grad.abs().sum() > 0 for each in odd)


def test_hourglass_adds_the_upsampled_inner_path() -> None:
    torch.manual_seed(0)
    module = HourglassModule((4, 6), (1, 1)).eval()
    x = torch.randn(1, 4, 4, 6)
    low = module.low3(module.low2(module.low1(x)))
    assert low.shape == (1, 4, 2, 3)
    torch.testing.assert_close(module(x), module.up1(x) + low.repeat_interleave(2, 2).repeat_interleave(2, 3))


def test_all_stacked_maps_have_heads_in_training_and_only_the_last_in_evaluation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(BACKBONES, "hourglass104", lambda: Hourglass(3, (8, 8), (1, 1), out_width=8))
    torch.manual_seed(0)
    network = CenterNet("hourglass104", 3, head_width=8, neck="none", joint_count=2)
    images = torch.randint(0, 256, (2, 32, 48, 3), dtype=torch.uint8)
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    for heads in network.earlier_heads:
        heads.get_submodule("heatmap_head").register_forward_hook(count)
    maps = network.train()(images)
    assert calls == 2
    assert [each.heatmap.shape for each in maps.earlier] == [(2, 3, 8, 12)] * 2
    assert all(each.keypoints is not None and each.earlier == () for each in maps.earlier)
    assert network.eval()(images).earlier == ()
    assert calls == 2


@pytest.mark.parametrize("backbone", ["resnet18", "hourglass104"])
def test_head_keys_do_not_depend_on_the_backbone(backbone: str) -> None:
    with torch.device("meta"):
        keys = CenterNet(backbone, 3, neck=fitting_necks(backbone)[0]).state_dict().keys()
    heads = {f"{name}_head.{layer}.{part}" for name in ("heatmap", "size", "offset") for layer in (0, 2)
             for part in ("weight", "bias")}  # fmt: skip
    assert {key for key in keys if not key.startswith(("backbone.", "neck.", "earlier_heads."))} == heads
    earlier = {key for key in keys if key.startswith("earlier_heads.")}
    assert earlier == ({f"earlier_heads.0.{key}" for key in heads} if backbone == "hourglass104" else set())


def test_pixel_mean_and_std_can_be_set() -> None:
    own = CenterNet("resnet18", 3)
    other = CenterNet("resnet18", 3, mean=(100.0, 50.0, 25.0), std=(2.0, 4.0, 8.0))
    assert own.mean.flatten().tolist() == pytest.approx([123.675, 116.28, 103.53])
    other.load_state_dict(own.state_dict())
    inputs: list[torch.Tensor] = []
    other.backbone.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    other.eval()(torch.full((1, 32, 32, 3), 100, dtype=torch.uint8))
    assert inputs[0][0, :, 5, 7].tolist() == [0.0, 12.5, 9.375]


def test_a_new_network_has_low_scores() -> None:
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
    for index, channels in ((3, 24), (4, 40)):  # the second has a shortcut
        block = backbone._blocks[index].eval()
        y = 20 * torch.randn(1, channels, 16, 16)  # large enough for the upper bound of ReLU6
        plain = y
        for conv, norm in (("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")):
            plain = block.get_submodule(norm)(block.get_submodule(conv)(plain))
            plain = plain.clamp(0, 6) if conv != "_project_conv" else plain
        plain = plain + y if index == 4 else plain
        torch.testing.assert_close(block(y), plain, atol=1e-4, rtol=1e-4)
    assert len(backbone.eval()(x)) == 4


@pytest.mark.parametrize(("backbone", "eps"), [("efficientnet_lite0", 1e-3), ("resnet18", 1e-5), ("dla34", 1e-5)])
def test_batch_norms_have_the_epsilon_of_the_published_weights(backbone: str, eps: float) -> None:
    norms = [each for each in describe_backbone(backbone).modules() if isinstance(each, torch.nn.BatchNorm2d)]
    assert {norm.eps for norm in norms} == {eps}
