"""The training state (network, EMA, optimiser, schedule, loss scaler) and the training step."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from model.errors import UserError
from training.config import Config
from training.datasets.dataset import Dataset
from training.loader import MicroBatch, choose_workers, steps_per_epoch
from training.losses import Counts, count_targets, detection_losses
from training.optimizer import build_ema, build_optimizer, freeze, learning_rate_schedule, set_training_mode
from training.processes import Processes, defer_gradient_sync
from training.weights.checkpoint import build_network
from training.weights.pretrained import load_pretrained


class NonFiniteLoss(UserError):
    """A loss term is infinite or NaN; the message names it."""


class Step(NamedTuple):
    """The results of one step over the whole batch; tensors are scalars."""

    losses: dict[str, Tensor]  # weighted, by term
    gradient_norm: Tensor  # before clipping
    learning_rate: float  # of neck and heads


def choose_precision(wanted: str, device: torch.device) -> str:
    """Returns fp32, bf16 or fp16; for `auto`, the fastest that the device supports natively.

    A CPU without bf16 instructions emulates them, which makes a step ten times as slow as in fp32.
    """
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    # missing in older PyTorch releases
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "fp32"


class Learner:
    """Builds the network of `config` on this process's device, with random (seeded) or pretrained weights."""

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        processes: Processes,
        console: Console,
    ) -> None:
        self.config, self.processes = config, processes
        self.steps_per_epoch = steps_per_epoch(dataset, config)
        labels, joints = dataset.labels, dataset.skeleton.joints
        self.device = processes.choose_device(config.device)
        self.precision = choose_precision(config.precision, self.device)
        self.workers = choose_workers(config.workers, self.device, processes)
        torch.manual_seed(config.seed)
        self.network = build_network(config, len(labels), len(joints))
        if config.pretrained:
            console.print(load_pretrained(self.network, config.pretrained, labels, joints))
        freeze(self.network, config)
        self.network.to(self.device)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in PyTorch's stubs
        self.ema = build_ema(self.network, config.ema_decay)
        processes.sync_batch_norms(self.network, self.device)
        self.optimizer = build_optimizer(self.network, config)
        schedule = learning_rate_schedule(config, self.steps_per_epoch)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, schedule)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    def begin_epoch(self, epoch: int) -> None:
        """Sets which parameters `epoch` trains, and wraps the network again to synchronise their gradients."""
        set_training_mode(self.network, self.config, epoch)
        self._ddp_network = self.processes.wrap_data_parallel(self.network, self.device)

    def step(self, micro_batches: Sequence[MicroBatch]) -> Step:
        """Takes one optimiser step on this process's micro-batches: images (B, size, size, 3), uint8, and targets.

        Losses and gradients equal those of the whole batch, however it is split over micro-batches and processes; only
        batch norm statistics are per micro-batch (of all processes). Raises `NonFiniteLoss`.
        """
        local_counts = torch.stack([count_targets(targets, self.config) for _, targets in micro_batches])
        # gradients are averaged over the processes, so each process divides its losses by the mean count
        counts = Counts(
            *self.processes.all_reduce(local_counts.sum(0).to(self.device)).clamp(min=1) / self.processes.world_size
        )
        totals: dict[str, Tensor] = {}
        # the network's random draws depend only on the step and the process, so that a resumed run repeats them
        seeds = np.random.SeedSequence((self.config.seed, self.scheduler.last_epoch, self.processes.rank))
        torch.manual_seed(int(seeds.generate_state(1)[0]))
        self.optimizer.zero_grad()
        for number, (images, targets) in enumerate(micro_batches, start=1):
            images = images.to(self.device, non_blocking=True)
            targets = targets.to(self.device)
            with defer_gradient_sync(self._ddp_network, number < len(micro_batches)):
                with torch.autocast(self.device.type, self._dtype(), enabled=self.precision != "fp32"):
                    maps = self._ddp_network(images)
                terms = detection_losses(maps, targets, self.config, counts)
                self.scaler.scale(torch.stack(list(terms.values())).sum()).backward()  # type: ignore[no-untyped-call]
            totals = {name: term.detach() + totals.get(name, 0) for name, term in terms.items()}
        means = self.processes.all_reduce(torch.stack(list(totals.values()))) / self.processes.world_size
        losses = dict(zip(totals, means.cpu(), strict=True))
        self._check_finite(losses)
        self.scaler.unscale_(self.optimizer)
        gradient_norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.config.gradient_clip)
        learning_rate = self.optimizer.param_groups[-1]["lr"]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()
        self.ema.update_parameters(self.network)
        return Step(losses, gradient_norm, learning_rate)

    def describe_steps(self) -> str:
        """Describes batch size, processes, device, precision and learning rate in one line."""
        config, count = self.config, self.processes.world_size
        rate = f"learning rate {config.scaled_learning_rate:g}"
        if config.scaled_learning_rate != config.learning_rate:
            rate += f" ({config.learning_rate:g} is for batches of {config.learning_rate_batch_size})"
        processes = f" by {count} processes" if count > 1 else ""
        parts = f" in {config.accumulate} micro-batches" if config.accumulate > 1 else ""
        return f"batches of {config.batch_size}{processes}{parts} on {self.device.type} in {self.precision}, {rate}"

    def state_dict(self) -> dict[str, Any]:
        """Returns the states of network, EMA, optimiser, schedule and loss scaler, by name."""
        return {name: each.state_dict() for name, each in self._stateful().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned for the same configuration."""
        for name, each in self._stateful().items():
            if state[name]:  # a disabled scaler has an empty state
                each.load_state_dict(state[name])

    def _stateful(self) -> dict[str, Any]:
        return {
            "network": self.network,
            "average": self.ema,  # the key in checkpoints
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "scaler": self.scaler,
        }

    def _dtype(self) -> torch.dtype:
        return torch.float16 if self.precision == "fp16" else torch.bfloat16

    def _check_finite(self, losses: dict[str, Tensor]) -> None:
        epoch, step = divmod(self.scheduler.last_epoch, self.steps_per_epoch)  # counts steps, despite its name
        for name, loss in losses.items():
            if not torch.isfinite(loss):
                raise NonFiniteLoss(
                    f"the {name} loss is {loss.item()} at epoch {epoch + 1}, step {step}: lower the learning rate,"
                    " or train with precision fp32"
                )
