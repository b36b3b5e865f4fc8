import pytest
import torch
from torch import Tensor, nn

from model.network.convolution import conv_bn

Parts = tuple[nn.Conv2d, nn.BatchNorm2d, Tensor]


def run(parts: Parts, fused: bool, autocast: bool) -> list[Tensor]:
    """Returns the output and the gradients of input, weight, norm's weight and norm's bias."""
    convolution, norm, x = parts
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = conv_bn(x, convolution, norm) if fused else norm(convolution(x))
    weights = [x, convolution.weight, norm.weight, norm.bias]
    direction = torch.linspace(-1, 1, y.numel()).view_as(y)
    return [y, *torch.autograd.grad((y.float() * direction).sum(), weights)]


@pytest.mark.parametrize(("kernel_size", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2)])
@pytest.mark.parametrize("depthwise", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_conv_bn_has_the_output_and_gradients_of_convolution_then_norm(
    kernel_size: int, stride: int, depthwise: bool, training: bool
) -> None:
    torch.manual_seed(0)
    groups = 8 if depthwise else 1
    convolution = nn.Conv2d(8, 8, kernel_size, stride, kernel_size // 2, groups=groups, bias=False)
    norm = nn.BatchNorm2d(8).train(training)
    norm.load_state_dict(
        {
            "weight": torch.rand(8) + 0.5,
            "bias": torch.randn(8),
            "running_mean": torch.randn(8),
            "running_var": torch.rand(8) + 0.5,
            "num_batches_tracked": torch.tensor(0),
        }
    )
    parts = (convolution, norm, torch.randn(4, 8, 12, 12))
    expected = run(parts, fused=False, autocast=False)
    for exact, tolerance in ((run(parts, fused=True, autocast=False), 1e-5), (run(parts, True, True), 0.03)):
        for one, other in zip(exact, expected, strict=True):
            assert (one - other).abs().max() <= tolerance * other.abs().max()
