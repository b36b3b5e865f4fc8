"""Batch norm over the pictures of all processes, where PyTorch has none: its own needs a GPU."""

import torch
import torch.distributed as dist
from torch import Tensor, nn


class SharedBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` as if one process had seen the pictures of all; each has equally many.

    In fp32 whatever comes in, and in two passes, as a difference of large sums would lose its digits.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, H, W), of x's type."""
        if not self.training:
            return super().forward(x)
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        assert self.momentum is not None
        count = x.numel() // x.shape[1] * dist.get_world_size()
        centred = x.float()
        mean: Tensor = _SumOverProcesses.apply(centred.sum((0, 2, 3))) / count  # type: ignore[no-untyped-call]
        centred = centred - mean[:, None, None]
        variance: Tensor = _SumOverProcesses.apply(centred.square().sum((0, 2, 3))) / count  # type: ignore[no-untyped-call]
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
            self.num_batches_tracked.add_(1)
        scale = self.weight / (variance + self.eps).sqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


def share_batch_norms(network: nn.Module) -> None:
    """Replaces every `nn.BatchNorm2d` by a `SharedBatchNorm2d` with its very parameters and buffers."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if type(child) is nn.BatchNorm2d:
                shared = SharedBatchNorm2d(child.num_features, child.eps, child.momentum)
                shared.__dict__.update(child.__dict__)
                setattr(module, name, shared)


class _SumOverProcesses(torch.autograd.Function):
    """A sum that all processes have is in all their losses: its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx, value: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        total = gradient.clone()
        dist.all_reduce(total)
        return total
