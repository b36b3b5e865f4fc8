"""A network, everything that changes while it learns, and the step that changes it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from training.checkpoint import build_network
from training.config import Config
from training.datasets.dataset import Dataset
from training.loader import Part, choose_workers, steps_per_epoch
from training.losses import Counts, count_targets, detection_losses
from training.optimizer import build_average, build_optimizer, freeze, learning_rate_curve, set_training_mode
from training.pretrained import load_pretrained
from training.processes import Processes, hold_gradients


class NonFiniteLoss(Exception):
    """A loss term became infinite or not a number; the message names it."""


class Step(NamedTuple):
    """What one step found over the whole batch; tensors are scalars."""

    losses: dict[str, Tensor]  # weighted, by term
    gradient_norm: Tensor  # before clipping
    learning_rate: float  # of neck and heads


def choose_precision(wanted: str, device: torch.device) -> str:
    """Returns fp32, bf16 or fp16: what is wanted, or for `auto` the fastest that the device computes in.

    A CPU without instructions for bf16 emulates it, and a step takes ten times as long as in fp32.
    """
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    # older releases of PyTorch do not tell
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "fp32"


class Learner:
    """Begins as `config` says, with weights drawn from its seed or pretrained ones, on this process's device."""

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
        self.average = build_average(self.network, config.ema_decay)
        processes.share_statistics(self.network, self.device)
        self.optimizer = build_optimizer(self.network, config)
        curve = learning_rate_curve(config, self.steps_per_epoch)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, curve)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    def begin_epoch(self, epoch: int) -> None:
        """Frees and freezes what `epoch` trains, and has the gradients shared of what it trains."""
        set_training_mode(self.network, self.config, epoch)
        self._shared = self.processes.share_gradients(self.network, self.device)

    def step(self, parts: Sequence[Part]) -> Step:
        """Learns from one batch, of which this process has `parts`: images (B, size, size, 3), uint8, and targets.

        The losses and gradients are those of the whole batch at once, however many parts and processes share it; only
        a batch norm's statistics are those of a part (of all processes). Raises `NonFiniteLoss`.
        """
        own_counts = torch.stack([count_targets(targets, self.config) for _, targets in parts]).sum(0).to(self.device)
        # the processes' gradients are averaged, not added up: each divides by the mean count, so that the sum is right
        counts = Counts(*self.processes.total(own_counts).clamp(min=1) / self.processes.count)
        totals: dict[str, Tensor] = {}
        # what the network draws at random depends on the step alone, so that a resumed run draws the same
        drawn = np.random.SeedSequence((self.config.seed, self.scheduler.last_epoch, self.processes.index))
        torch.manual_seed(int(drawn.generate_state(1)[0]))
        self.optimizer.zero_grad()
        for number, (images, targets) in enumerate(parts, start=1):
            images = images.to(self.device, non_blocking=True)
            targets = targets.to(self.device)
            with hold_gradients(self._shared, number < len(parts)):
                with torch.autocast(self.device.type, self._dtype(), enabled=self.precision != "fp32"):
                    maps = self._shared(images)
                terms = detection_losses(maps, targets, self.config, counts)
                self.scaler.scale(torch.stack(list(terms.values())).sum()).backward()  # type: ignore[no-untyped-call]
            totals = {name: term.detach() + totals.get(name, 0) for name, term in terms.items()}
        means = self.processes.total(torch.stack(list(totals.values()))) / self.processes.count
        losses = dict(zip(totals, means.cpu(), strict=True))
        self._check_finite(losses)
        self.scaler.unscale_(self.optimizer)
        gradient_norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.config.gradient_clip)
        learning_rate = self.optimizer.param_groups[-1]["lr"]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()
        self.average.update_parameters(self.network)
        return Step(losses, gradient_norm, learning_rate)

    def describe_steps(self) -> str:
        """One line: how large a step is, who computes it, and how fast it learns."""
        config, count = self.config, self.processes.count
        rate = f"learning rate {config.scaled_learning_rate:g}"
        if config.scaled_learning_rate != config.learning_rate:
            rate += f" ({config.learning_rate:g} is for batches of {config.learning_rate_batch_size})"
        shares = f" by {count} processes" if count > 1 else ""
        parts = f" in {config.accumulate} parts" if config.accumulate > 1 else ""
        return f"batches of {config.batch_size}{shares}{parts} on {self.device.type} in {self.precision}, {rate}"

    def state_dict(self) -> dict[str, Any]:
        """What changes from step to step: network, average, optimiser, schedule and loss scale, by name."""
        return {name: part.state_dict() for name, part in self._parts().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over what `state_dict` of a learner alike has returned."""
        for name, part in self._parts().items():
            if state[name]:  # the scaler has none where it does not scale
                part.load_state_dict(state[name])

    def _parts(self) -> dict[str, Any]:
        return {
            "network": self.network,
            "average": self.average,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "scaler": self.scaler,
        }

    def _dtype(self) -> torch.dtype:
        return torch.float16 if self.precision == "fp16" else torch.bfloat16

    def _check_finite(self, losses: dict[str, Tensor]) -> None:
        epoch, step = divmod(self.scheduler.last_epoch, self.steps_per_epoch)  # PyTorch's word for a scheduler's steps
        for name, loss in losses.items():
            if not torch.isfinite(loss):
                raise NonFiniteLoss(
                    f"the {name} loss is {loss.item()} at epoch {epoch + 1}, step {step}: lower the learning rate,"
                    " or train with precision fp32"
                )
