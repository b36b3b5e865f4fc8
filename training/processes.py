"""Data-parallel training across the processes that `torchrun` starts, on several GPUs or machines."""

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

from training.batch_norm import convert_sync_batch_norms
from training.config import Config, InvalidConfig

_TIMEOUT = timedelta(hours=1)  # of a collective: the others wait while one process reads a data set or measures AP

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Processes:
    """This process's rank among all training processes; by default, a single process."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0  # on this machine, also the index of the process's GPU
    local_world_size: int = 1  # processes on this machine
    restarts_on_failure: bool = False  # whether `torchrun` repeats the command after a failure

    @property
    def is_first(self) -> bool:
        """Whether this is the process of rank 0, which alone measures, writes and prints."""
        return self.rank == 0

    def choose_device(self, name: str) -> torch.device:
        """Returns this process's device for the setting `device`; raises `InvalidConfig` if it is unavailable."""
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        if not name.startswith("cuda"):
            return torch.device(name)
        if not torch.cuda.is_available():
            raise InvalidConfig(f"device {name}: PyTorch finds no CUDA device here; use --device cpu")
        if self.world_size == 1:
            return torch.device(name)
        if name != "cuda":
            raise InvalidConfig(f"device {name}: {self.world_size} processes need a GPU each: use --device cuda")
        if self.local_rank >= torch.cuda.device_count():
            raise InvalidConfig(f"no GPU for process {self.local_rank}: lower --nproc-per-node, or use --device cpu")
        torch.cuda.set_device(self.local_rank)  # NCCL uses the current device
        return torch.device("cuda", self.local_rank)

    def may_start_fresh(self, last_path: Path) -> bool:
        """Whether `--resume` may start a run without a checkpoint: `torchrun` restarts with the same flags."""
        return self.broadcast(self.restarts_on_failure and not last_path.exists())

    def check_batch_size(self, config: Config) -> None:
        """Raises `InvalidConfig` if the batch does not divide evenly among processes and micro-batches."""
        divisor = self.world_size * config.accumulate
        if config.batch_size % divisor:
            raise InvalidConfig(
                f"batch_size {config.batch_size} is the total of all processes, and cannot be split into"
                f" {self.world_size} x {config.accumulate} equal parts (processes x accumulate):"
                f" make it a multiple of {divisor}"
            )

    def sync_batch_norms(self, network: nn.Module, device: torch.device) -> None:
        """Replaces the batch norms by synchronised ones, with unchanged names and weights."""
        if self.world_size > 1 and device.type == "cuda":
            nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        elif self.world_size > 1:
            convert_sync_batch_norms(network)

    def wrap_data_parallel(self, network: nn.Module, device: torch.device) -> nn.Module:
        """Wraps the network so that each backward pass averages the gradients over all processes."""
        if self.world_size == 1 or not any(parameter.requires_grad for parameter in network.parameters()):
            return network
        device_ids = [device] if device.type == "cuda" else None
        return DistributedDataParallel(network, device_ids)

    def all_reduce(self, value: Tensor) -> Tensor:
        """Returns the sum of `value`, of any shape, over all processes."""
        if self.world_size > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def shard(self, items: tuple[T, ...]) -> tuple[T, ...]:
        """Returns every `world_size`-th item, starting at `rank`."""
        return items[self.rank :: self.world_size]

    def gather(self, items: list[T]) -> list[T]:
        """Merges all processes' shards in the order before `shard`; only the first process gets it, the others []."""
        if self.world_size == 1:
            return items
        shards: list[list[T]] | None = [[]] * self.world_size if self.is_first else None
        dist.gather_object(items, shards)
        longest = max(map(len, shards), default=0) if shards else 0
        return [shard[index] for index in range(longest) for shard in shards or () if index < len(shard)]

    def broadcast(self, value: T) -> T:
        """Returns the first process's `value`; the other processes block until it arrives."""
        if self.world_size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]


SINGLE_PROCESS = Processes()


def defer_gradient_sync(network: nn.Module, is_deferred: bool) -> AbstractContextManager[None]:
    """While deferred, backward passes accumulate gradients locally without averaging them over the processes."""
    if is_deferred and isinstance(network, DistributedDataParallel):
        return network.no_sync()
    return contextlib.nullcontext()


@contextlib.contextmanager
def join_processes() -> Iterator[Processes]:
    """Joins `torchrun`'s process group, by NCCL on GPUs and Gloo on CPUs; without `torchrun`, yields a single process.

    Raises `InvalidConfig` if restarted processes could not rendezvous.
    """
    if not dist.is_torchelastic_launched():
        yield Processes()
        return
    restarts_on_failure = int(os.environ["TORCHELASTIC_MAX_RESTARTS"]) > 0
    if restarts_on_failure and os.environ["TORCHELASTIC_USE_AGENT_STORE"] == "True":
        raise InvalidConfig(
            "torchrun --max-restarts needs TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in its environment: without it PyTorch"
            " tells restarted processes the addresses of those that have ended"
        )
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=_TIMEOUT)
    try:
        yield Processes(
            rank=dist.get_rank(),
            world_size=dist.get_world_size(),
            local_rank=int(os.environ["LOCAL_RANK"]),
            local_world_size=int(os.environ["LOCAL_WORLD_SIZE"]),
            restarts_on_failure=restarts_on_failure,
        )
    finally:
        dist.destroy_process_group()
