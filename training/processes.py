"""The processes that train one network together, as `torchrun` starts them: on several GPUs, or on several machines."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from training.batch_norm import share_batch_norms
from training.config import Config, InvalidConfig

_PATIENCE = timedelta(hours=1)  # the others wait that long while one reads a data set or measures AP

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Processes:
    """How many there are, and which one this is; the first one writes and prints. The default: this one alone."""

    index: int = 0
    count: int = 1
    local_index: int = 0  # among those of this machine: the number of its GPU
    local_count: int = 1  # on this machine
    are_restarted: bool = False  # after a failure, by `torchrun`, with the same command

    @property
    def is_first(self) -> bool:
        """Whether this is the one that measures, writes and prints."""
        return self.index == 0

    def choose_device(self, name: str) -> torch.device:
        """The device that a configuration names, for this process; raises `InvalidConfig` where it is not there."""
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        if not name.startswith("cuda"):
            return torch.device(name)
        if not torch.cuda.is_available():
            raise InvalidConfig(f"device {name}: PyTorch finds no CUDA device here; use --device cpu")
        if self.count == 1:
            return torch.device(name)
        if name != "cuda":
            raise InvalidConfig(f"device {name}: {self.count} processes need a GPU each: use --device cuda")
        if self.local_index >= torch.cuda.device_count():
            raise InvalidConfig(f"no GPU for process {self.local_index}: lower --nproc-per-node, or use --device cpu")
        torch.cuda.set_device(self.local_index)  # where NCCL works
        return torch.device("cuda", self.local_index)

    def may_begin(self, last_path: Path) -> bool:
        """Whether a resumed run that has saved nothing begins anew: where the same command is to serve every start."""
        return self.tell(self.are_restarted and not last_path.exists())

    def check_shares(self, config: Config) -> None:
        """Raises `InvalidConfig` where the batch cannot be shared out evenly."""
        shares = self.count * config.accumulate
        if config.batch_size % shares:
            raise InvalidConfig(
                f"batch_size {config.batch_size} is that of all processes together, and cannot be cut into"
                f" {self.count} x {config.accumulate} equal parts (processes x accumulate):"
                f" make it a multiple of {shares}"
            )

    def share_statistics(self, network: nn.Module, device: torch.device) -> None:
        """Replaces the batch norms by ones that see all processes' pictures; names and weights stay."""
        if self.count > 1 and device.type == "cuda":
            nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        elif self.count > 1:
            share_batch_norms(network)

    def share_gradients(self, network: nn.Module, device: torch.device) -> nn.Module:
        """The network whose gradients are the mean of all processes' after each backward pass."""
        if self.count == 1 or not any(parameter.requires_grad for parameter in network.parameters()):
            return network
        device_ids = [device] if device.type == "cuda" else None
        return DistributedDataParallel(network, device_ids)

    def total(self, value: Tensor) -> Tensor:
        """The sum of all processes' `value`, of any shape."""
        if self.count > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def deal(self, items: tuple[T, ...]) -> tuple[T, ...]:
        """This process's share of `items`: one in `count`, as cards are dealt."""
        return items[self.index :: self.count]

    def collect(self, share: list[T]) -> list[T]:
        """What `deal` dealt, in its order; the first process gets it, the others an empty list."""
        if self.count == 1:
            return share
        shares: list[list[T]] | None = [[]] * self.count if self.is_first else None
        dist.gather_object(share, shares)
        rounds = max(map(len, shares), default=0) if shares else 0
        return [each[at] for at in range(rounds) for each in shares or () if at < len(each)]

    def tell(self, value: T) -> T:
        """The first process's `value`; it comes to the others once the first one has it."""
        if self.count == 1:
            return value
        told = [value]
        dist.broadcast_object_list(told)
        return told[0]


ALONE = Processes()


def hold_gradients(network: nn.Module, is_held: bool) -> AbstractContextManager[None]:
    """While they are held, a backward pass adds to this process's gradients alone: more is to come before the mean."""
    if is_held and isinstance(network, DistributedDataParallel):
        return network.no_sync()
    return contextlib.nullcontext()


@contextlib.contextmanager
def join_processes() -> Iterator[Processes]:
    """Joins the processes that `torchrun` has started, by NCCL between GPUs and by Gloo between CPUs; or is alone.

    Raises `InvalidConfig` where processes that are restarted would not find each other.
    """
    if not dist.is_torchelastic_launched():
        yield Processes()
        return
    are_restarted = int(os.environ["TORCHELASTIC_MAX_RESTARTS"]) > 0
    if are_restarted and os.environ["TORCHELASTIC_USE_AGENT_STORE"] == "True":
        raise InvalidConfig(
            "torchrun --max-restarts needs TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in its environment: without it PyTorch"
            " tells restarted processes the addresses of those that have ended"
        )
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=_PATIENCE)
    try:
        yield Processes(
            index=dist.get_rank(),
            count=dist.get_world_size(),
            local_index=int(os.environ["LOCAL_RANK"]),
            local_count=int(os.environ["LOCAL_WORLD_SIZE"]),
            are_restarted=are_restarted,
        )
    finally:
        dist.destroy_process_group()
