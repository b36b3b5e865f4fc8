import torch
import torch.nn.functional as F
from torch import Tensor

from model.network.deformable import DeformableConv, deform_conv


def sample(plane: Tensor, row: float, column: float) -> float:
    """Bilinear interpolation with zero padding."""
    top, left = int(row // 1), int(column // 1)
    value = 0.0
    for y, weight_y in ((top, 1 - (row - top)), (top + 1, row - top)):
        for x, weight_x in ((left, 1 - (column - left)), (left + 1, column - left)):
            if 0 <= y < plane.shape[0] and 0 <= x < plane.shape[1]:
                value += weight_y * weight_x * plane[y, x].item()
    return value


def test_each_value_is_the_sum_over_shifted_and_weighted_taps() -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 3, 3), torch.randn(2)
    offset, mask = torch.randn(2, 18, 4, 5) * 2, torch.rand(2, 9, 4, 5)
    y = deform_conv(x, weight, offset, bias, mask)
    for image, out, row, column in ((0, 0, 0, 0), (0, 1, 2, 3), (1, 0, 3, 4), (1, 1, 1, 0)):
        expected = bias[out].item()
        for tap in range(9):
            dy, dx = offset[image, 2 * tap : 2 * tap + 2, row, column].tolist()
            at = row + tap // 3 - 1 + dy, column + tap % 3 - 1 + dx
            for channel in range(3):
                strength = weight[out, channel, tap // 3, tap % 3].item() * mask[image, tap, row, column].item()
                expected += strength * sample(x[image, channel], *at)
        assert abs(y[image, out, row, column].item() - expected) < 1e-4


def test_zero_offsets_give_a_plain_convolution_even_for_one_cell() -> None:
    for height, width in ((4, 6), (1, 1)):
        x, weight, bias = torch.randn(1, 3, height, width), torch.randn(5, 3, 3, 3), torch.randn(5)
        offset, mask = torch.zeros(1, 18, height, width), torch.ones(1, 9, height, width)
        torch.testing.assert_close(
            deform_conv(x, weight, offset, bias, mask), F.conv2d(x, weight, bias, padding=1), atol=1e-5, rtol=1e-5
        )


def test_layer_starts_as_half_a_plain_convolution_and_learns_its_offsets() -> None:
    torch.manual_seed(0)
    layer = DeformableConv(3, 4)
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(layer(x), F.conv2d(x, layer.weight, padding=1) / 2, atol=1e-5, rtol=1e-5)
    layer(x).square().sum().backward()
    gradient = layer.conv_offset_mask.weight.grad
    assert gradient is not None
    for part in gradient.chunk(3):
        assert part.abs().sum() > 0
