"""Reads files of PyTorch weights, and checks that they fit a network."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.errors import UserError


class InvalidWeights(UserError):
    """A file of weights is unreadable or does not fit the network; the message says why."""


def read_weights(path: Path) -> dict[str, Any]:
    """Loads a file of PyTorch weights; raises `InvalidWeights`, also if unpickling it could run code."""
    if not path.is_file():
        raise InvalidWeights(f"{path}: no such file of weights")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load passes on any exception of its unpickler
        if found := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise InvalidWeights(
                f"{path}: holds Python objects ({found[1]}) besides weights, and unpickling them can run code. If you"
                " trust the file, save its weights alone, where the package that wrote it is installed: torch.save("
                "{'state_dict': torch.load(FILE, weights_only=False)['state_dict']}, OTHER)"
            ) from error
        raise InvalidWeights(f"{path}: not a file of PyTorch weights ({type(error).__name__})") from error
    if not isinstance(content, dict):
        raise InvalidWeights(f"{path}: is not a state dict but a {type(content).__name__}")
    return content


def load_strictly(module: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Loads `weights` into `module`; raises `InvalidWeights` listing every missing, unknown or misshapen key."""
    module.load_state_dict(check_fit(module.state_dict(), weights, path))


def check_fit(own: Mapping[str, Tensor], weights: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Returns `weights` if they have `own`'s keys and shapes; raises `InvalidWeights` listing every key that differs.

    `num_batches_tracked` may be missing, as in old files: only a batch norm without momentum uses it.
    """
    counts = {key: torch.tensor(0) for key in own if key.endswith(".num_batches_tracked")}
    complete = counts | dict(weights)
    problems = [f"missing {key}" for key in own if key not in complete]
    problems += [f"unknown {key}" for key in complete if key not in own]
    problems += [
        f"{key} is {tuple(complete[key].shape)} instead of {tuple(value.shape)}"
        for key, value in own.items()
        if key in complete and complete[key].shape != value.shape
    ]
    if problems:
        raise InvalidWeights(f"{path} does not fit this network: {', '.join(problems)}")
    return complete
