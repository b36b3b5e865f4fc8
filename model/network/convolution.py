"""Convolution with batch norm, and fast bfloat16 gradients of depthwise convolutions on CPUs."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_bn(x: Tensor, convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> Tensor:
    """`norm(convolution(x))`; if the norm's statistics are frozen, as one convolution with folded weights.

    Shapes: (B, C, H, W) → (B, convolution.out_channels, H / stride, W / stride). Gradients reach both modules' weights.
    """
    stride = convolution.stride[0]
    is_depthwise = convolution.groups > 1
    if norm.training:
        weight, bias = convolution.weight, None
    else:
        assert norm.running_var is not None and norm.running_mean is not None
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        weight = convolution.weight * scale[:, None, None, None]
        bias = norm.bias - norm.running_mean * scale
    if is_depthwise and x.device.type == "cpu" and torch.is_autocast_enabled("cpu") and torch.is_grad_enabled():
        dtype = torch.get_autocast_dtype("cpu")
        y: Tensor = _Depthwise.apply(  # type: ignore[no-untyped-call]
            x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype), stride
        )
    else:
        y = F.conv2d(x, weight, bias, stride, convolution.padding, groups=convolution.groups)
    return norm(y) if norm.training else y


def make_conv_bn(in_channels: int, out_channels: int, kernel_size: int = 1, stride: int = 1) -> nn.Sequential:
    """A convolution and batch norm: (B, in_channels, H, W) → (B, out_channels, H / stride, W / stride)."""
    convolution = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels))


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution whose backward pass avoids two slow gradients.

    oneDNN has no vectorised bfloat16 kernel for the gradient of a 5x5 weight (over 10 times slower than four 3x3 ones)
    nor for the input's gradient at stride 2 (10 times slower than the equivalent convolution at stride 1).
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return F.conv2d(x, weight, bias, stride, padding=weight.shape[-1] // 2, groups=len(weight))

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
        x, weight = ctx.saved_tensors
        stride, padding, channels = ctx.stride, weight.shape[-1] // 2, len(weight)
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            dilated = grad
            if stride > 1:  # the input gradient is that at stride 1 of the output gradient, dilated with zeros
                dilated = torch.zeros_like(x)
                dilated[:, :, ::stride, ::stride] = grad
            grad_x = F.conv2d(dilated, weight.flip(2, 3), padding=padding, groups=channels)
        if ctx.needs_input_grad[1]:
            grad_weight = torch.empty_like(weight)
            for top in range(0, weight.shape[-1] - 1, 2):  # a 5x5 weight as four overlapping 3x3 squares
                for left in range(0, weight.shape[-1] - 1, 2):
                    square = grad_weight[:, :, top : top + 3, left : left + 3]
                    padded = F.pad(x, (padding - left, left - padding + 2, padding - top, top - padding + 2))
                    square[:] = torch.ops.aten.convolution_backward(
                        grad, padded, square, None, [stride, stride], [0, 0], [1, 1], False, [0, 0], channels,
                        [False, True, False],
                    )[1]  # fmt: skip
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum((0, 2, 3))
        return grad_x, grad_weight, grad_bias, None
