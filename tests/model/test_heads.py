import pytest
import torch
from torch import Tensor

from model.network.cells import DenseMap, unravel_cells
from model.network.heads import STRIDE, HeadMaps, Heads

HEIGHT, WIDTH = 5, 7  # of the features


def make_heads(stride: int) -> Heads:
    torch.manual_seed(0)
    heads = Heads().add_heads(6, width=8, class_count=3, joint_count=2, stride=stride)
    for parameter in heads.parameters():
        torch.nn.init.normal_(parameter)
    return heads


def features() -> Tensor:
    return torch.randn(2, 6, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1))


def box_and_joint_maps(maps: HeadMaps) -> dict[str, tuple[Tensor, DenseMap]]:
    """By name, the values read cell by cell, (B, cells, C), and the dense map."""
    assert maps.keypoints is not None
    height, width = maps.heatmap.shape[2:]
    all_cells = unravel_cells(torch.arange(height * width).expand(2, -1), width)
    lazy = {"size": maps.size, "offset": maps.offset, "places": maps.keypoints.places, "joint": maps.keypoints.offset}
    return {name: (each.at(all_cells), DenseMap(each.dense())) for name, each in lazy.items()}


@pytest.mark.parametrize("stride", [4, 2])
def test_values_at_cells_equal_those_of_the_dense_map(stride: int) -> None:
    maps = make_heads(stride).apply_heads(features())
    height, width = HEIGHT * STRIDE // stride, WIDTH * STRIDE // stride
    for at_cells, dense in box_and_joint_maps(maps).values():
        expected = dense.values.flatten(2).transpose(1, 2)
        assert dense.values.shape[2:] == (height, width)
        assert expected.std() > 1
        torch.testing.assert_close(at_cells, expected, atol=1e-3, rtol=1e-4)


def test_cells_may_have_any_shape_and_repeat() -> None:
    size = make_heads(4).apply_heads(features()).size
    cells = unravel_cells(torch.tensor([[[34, 0, 6], [3, 3, 20]], [[1, 2, 34], [5, 28, 28]]]), WIDTH)
    torch.testing.assert_close(size.at(cells), DenseMap(size.dense()).at(cells), atol=1e-3, rtol=1e-4)
    assert size.at(cells).shape == (2, 2, 3, 2)
    assert size.at(unravel_cells(torch.zeros(2, 0, dtype=torch.int64), WIDTH)).shape == (2, 0, 2)


@pytest.mark.parametrize("stride", [4, 2])
def test_gradients_at_cells_equal_those_of_the_dense_map(stride: int) -> None:
    width = WIDTH * STRIDE // stride
    cells = unravel_cells(torch.tensor([[0, width - 1, 17], [9, 9, 4 * width]]), width)
    gradients = []
    for is_lazy in (True, False):
        heads, x = make_heads(stride), features().requires_grad_()
        size = heads.apply_heads(x).size
        (size.at(cells) if is_lazy else DenseMap(size.dense()).at(cells)).square().sum().backward()
        gradients.append([x.grad, *(each.grad for each in heads.size_head.parameters())])
    for one, other in zip(*gradients, strict=True):
        largest = other.abs().max().item()  # rounding errors scale with the largest summands
        assert largest > 0
        torch.testing.assert_close(one, other, atol=1e-5 * largest, rtol=0)


def test_bfloat16_features_are_read_in_bfloat16_and_returned_in_float32() -> None:
    heads, cells = make_heads(4), unravel_cells(torch.tensor([[3], [8]]), WIDTH)
    expected = heads.apply_heads(features()).size.at(cells)
    with torch.autocast("cpu", torch.bfloat16):
        maps = heads.apply_heads(features().bfloat16())
    found = maps.size.at(cells)  # outside autocast, as in the losses
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=0.02 * expected.abs().max().item(), rtol=0)
    assert not torch.equal(found, expected)
