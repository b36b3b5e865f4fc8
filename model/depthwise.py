"""Depthwise convolution whose gradients are fast in bfloat16 on a CPU."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DepthwiseConv2d(nn.Conv2d):
    """`nn.Conv2d(channels, channels, groups=channels)` with the same results, weights and ONNX export.

    oneDNN has no vectorised bfloat16 kernels for two of a depthwise convolution's gradients: that of the weight (5x5:
    3 to 8 times slower than in float32) and that of the input at stride 2 (10 times slower than the equal convolution
    at stride 1). On a CPU in bfloat16 training both take the faster way round; everything else is PyTorch's own.
    """

    def __init__(self, channels: int, kernel_size: int, stride: int = 1) -> None:
        super().__init__(
            channels, channels, kernel_size, stride, padding=kernel_size // 2, groups=channels, bias=False
        )

    def forward(self, input: Tensor) -> Tensor:
        is_slow = input.device.type == "cpu" and torch.is_autocast_enabled("cpu") and torch.is_grad_enabled()
        if not is_slow:
            return super().forward(input)
        dtype = torch.get_autocast_dtype("cpu")
        output = _Depthwise.apply(input.to(dtype), self.weight.to(dtype), self.stride[0])
        assert isinstance(output, Tensor)
        return output


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input: Tensor, weight: Tensor, stride: int) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(input, weight)
        ctx.stride = stride
        return F.conv2d(input, weight, stride=stride, padding=weight.shape[-1] // 2, groups=len(weight))

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # type: ignore[override]
        input, weight = ctx.saved_tensors
        stride, padding, channels = ctx.stride, weight.shape[-1] // 2, len(weight)
        grad_input = grad_weight = None
        if ctx.needs_input_grad[0]:
            spread = grad
            if stride > 1:  # a strided convolution's input gradient is the plain one of the gradient spread with zeros
                spread = torch.zeros_like(input)
                spread[:, :, ::stride, ::stride] = grad
            grad_input = F.conv2d(spread, weight.flip(2, 3), padding=padding, groups=channels)
        if ctx.needs_input_grad[1]:
            grad_weight = torch.ops.aten.convolution_backward(
                grad.float(), input.float(), weight.float(), None,
                [stride, stride], [padding, padding], [1, 1], False, [0, 0], channels, [False, True, False],
            )[1].to(weight.dtype)  # fmt: skip
        return grad_input, grad_weight, None
