"""Synchronised batch norm for CPUs; PyTorch's `SyncBatchNorm` needs a GPU."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

_REDUCED_DIMS = (0, 2, 3)  # all but the channels


class SyncBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` over the images of all processes, each of which has equally many."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalises (B, C, H, W), in training by all processes' statistics; keeps the dtype."""
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


def convert_sync_batch_norms(network: nn.Module) -> None:
    """Replaces every `nn.BatchNorm2d` by a `SyncBatchNorm2d` that shares its parameters and buffers."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if type(child) is nn.BatchNorm2d:
                synced = SyncBatchNorm2d(child.num_features, child.eps, child.momentum)
                synced.__dict__.update(child.__dict__)
                setattr(module, name, synced)


class _Normalize(torch.autograd.Function):
    """Batch norm (arXiv 1502.03167, algorithm 1, and the gradients of its section 3), in fp32 or higher precision.

    The variance takes a second pass: E[x²] - E[x]² would suffer from cancellation.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[no-untyped-def]
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        count = x.numel() // x.shape[1] * dist.get_world_size()
        mean = _all_reduce(wide.sum(_REDUCED_DIMS)) / count
        centred = wide - mean[:, None, None]
        variance = _all_reduce(centred.square().sum(_REDUCED_DIMS)) / count
        scale = (variance + eps).rsqrt()
        normalized = centred * scale[:, None, None]
        ctx.save_for_backward(normalized, weight, scale)
        ctx.count, ctx.dtype = count, x.dtype
        ctx.mark_non_differentiable(mean, variance)
        return (normalized * weight[:, None, None] + bias[:, None, None]).to(x.dtype), mean, variance

    @staticmethod
    def backward(ctx, gradient: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # type: ignore[no-untyped-def]
        normalized, weight, scale = ctx.saved_tensors
        wide = gradient.to(normalized.dtype)
        local = torch.stack([wide.sum(_REDUCED_DIMS), (wide * normalized).sum(_REDUCED_DIMS)])
        mean_gradient, mean_projection = (_all_reduce(local) / ctx.count)[:, :, None, None]
        grad_x = (wide - mean_gradient - normalized * mean_projection) * (scale * weight)[:, None, None]
        return grad_x.to(ctx.dtype), local[1].to(weight.dtype), local[0].to(weight.dtype), None


def _all_reduce(value: Tensor) -> Tensor:
    total = value.clone()
    dist.all_reduce(total)
    return total
