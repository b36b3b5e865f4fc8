"""Batch norm over the pictures of all processes, where PyTorch has none: its own needs a GPU."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

_OVER = (0, 2, 3)  # pictures, rows, columns: all but the channels


class SharedBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` as if one process had seen the pictures of all; each has equally many."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, H, W), of x's type."""
        if not self.training:
            return super().forward(x)
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        assert self.momentum is not None
        y, mean, variance = _Normalize.apply(x, self.weight, self.bias, self.eps)  # type: ignore[no-untyped-call]
        count = x.numel() // x.shape[1] * dist.get_world_size()
        with torch.no_grad():
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var.dtype), self.momentum)
            self.num_batches_tracked.add_(1)
        assert isinstance(y, Tensor)
        return y


def share_batch_norms(network: nn.Module) -> None:
    """Replaces every `nn.BatchNorm2d` by a `SharedBatchNorm2d` with its very parameters and buffers."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if type(child) is nn.BatchNorm2d:
                shared = SharedBatchNorm2d(child.num_features, child.eps, child.momentum)
                shared.__dict__.update(child.__dict__)
                setattr(module, name, shared)


class _Normalize(torch.autograd.Function):
    """Batch norm (arXiv 1502.03167, algorithm 1, and the gradients of its section 3), in fp32 or finer.

    In two passes, as a difference of large sums would lose its digits.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[no-untyped-def]
        fine = x.to(torch.promote_types(x.dtype, torch.float32))
        count = x.numel() // x.shape[1] * dist.get_world_size()
        mean = _total(fine.sum(_OVER)) / count
        centred = fine - mean[:, None, None]
        variance = _total(centred.square().sum(_OVER)) / count
        scale = (variance + eps).rsqrt()
        normalized = centred * scale[:, None, None]
        ctx.save_for_backward(normalized, weight, scale)
        ctx.count, ctx.dtype = count, x.dtype
        ctx.mark_non_differentiable(mean, variance)
        return (normalized * weight[:, None, None] + bias[:, None, None]).to(x.dtype), mean, variance

    @staticmethod
    def backward(ctx, gradient: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # type: ignore[no-untyped-def]
        normalized, weight, scale = ctx.saved_tensors
        fine = gradient.to(normalized.dtype)
        own = torch.stack([fine.sum(_OVER), (fine * normalized).sum(_OVER)])
        along_ones, along_normalized = (_total(own) / ctx.count)[:, :, None, None]
        grad_x = (fine - along_ones - normalized * along_normalized) * (scale * weight)[:, None, None]
        return grad_x.to(ctx.dtype), own[1].to(weight.dtype), own[0].to(weight.dtype), None


def _total(value: Tensor) -> Tensor:
    total = value.clone()
    dist.all_reduce(total)
    return total
