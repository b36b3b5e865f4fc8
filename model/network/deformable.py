"""Modulated deformable convolution (Zhu et al., "Deformable ConvNets v2", arXiv 1811.11168) in plain PyTorch."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DeformableConv(nn.Module):
    """Modulated deformable convolution: predicts an offset and a weight for each tap at each position.

    Shapes: (B, in_channels, H, W) → (B, out_channels, H, W). Key names are those of the authors' `DCN`.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3) -> None:
        super().__init__()
        taps = kernel_size**2
        plain = nn.Conv2d(in_channels, out_channels, kernel_size)
        self.weight, self.bias = plain.weight, nn.Parameter(torch.zeros(out_channels))
        self.conv_offset_mask = nn.Conv2d(in_channels, 3 * taps, kernel_size, padding=kernel_size // 2)
        nn.init.zeros_(self.conv_offset_mask.weight)  # starts as a plain convolution, times 0.5
        assert self.conv_offset_mask.bias is not None
        nn.init.zeros_(self.conv_offset_mask.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) → (B, out_channels, H, W)."""
        rows_first, columns_first, mask = self.conv_offset_mask(x).chunk(3, dim=1)
        offset = torch.cat([rows_first, columns_first], dim=1)
        # bfloat16 is too coarse for sampling positions; autocast does not know the meta device
        with torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False):
            inputs = (x.float(), self.weight, offset.float(), self.bias, mask.float().sigmoid())
            if torch.compiler.is_exporting():
                y: Tensor = torch.ops.centernet.deform_conv(*inputs)
                return y
            return deform_conv(*inputs)


def deform_conv(x: Tensor, weight: Tensor, offset: Tensor, bias: Tensor, mask: Tensor) -> Tensor:
    """Modulated deformable convolution with bilinear sampling and zero padding.

    Shapes: x (B, C, H, W); weight (O, C, k, k); offset (B, 2 * k * k, H, W), in cells, (dy, dx) of each tap in turn;
    bias (O,); mask (B, k * k, H, W) → (B, O, H, W). Equals ONNX's `DeformConv` with stride 1 and padding k // 2.
    """
    batch, channels, height, width = x.shape
    size = weight.shape[-1]
    shift = offset.view(batch, size**2, 2, height, width)
    tap = torch.arange(size, device=x.device) - size // 2
    tap_rows, tap_columns = (each.reshape(-1, 1, 1) for each in torch.meshgrid(tap, tap, indexing="ij"))
    rows = torch.arange(height, device=x.device)[:, None] + tap_rows + shift[:, :, 0]  # (B, k * k, H, W)
    columns = torch.arange(width, device=x.device) + tap_columns + shift[:, :, 1]
    grid = torch.stack([(2 * columns + 1) / width, (2 * rows + 1) / height], dim=-1) - 1  # -1 to 1, for `grid_sample`
    samples = F.grid_sample(x, grid.view(batch, size**2 * height, width, 2), align_corners=False)
    samples = samples.view(batch, channels, size**2, height, width) * mask[:, None]
    y: Tensor = torch.einsum("bcthw,oct->bohw", samples, weight.flatten(2)) + bias[:, None, None]
    return y


# as a custom operator, which `model.network.graph` exports as one ONNX node
_operator = torch.library.custom_op("centernet::deform_conv", deform_conv, mutates_args=())


@_operator.register_fake
def _(x: Tensor, weight: Tensor, offset: Tensor, bias: Tensor, mask: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0], *x.shape[2:])
