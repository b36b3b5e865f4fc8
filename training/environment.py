"""Describes hardware, software and code version, so that a run can be reproduced."""

import datetime
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

import torch

from model.session import count_cpus

_PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "opencv-python-headless",
    "onnx",
    "onnxruntime-gpu",
    "onnxruntime",
    "faster-coco-eval",
    "tensorboard",
)


def describe_environment(device: str) -> dict[str, str]:
    """Returns the facts about machine and packages that affect results and speed, by name."""
    facts = {
        "command": shlex.join(sys.orig_argv),
        "started": datetime.datetime.now().astimezone().isoformat(" ", "seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": name_processor(),
        "cpus": f"{count_cpus()} usable of {os.cpu_count()}",
        "threads": f"{torch.get_num_threads()} of PyTorch",
        "device": _name_device(device),
    }
    if torch.version.cuda:
        facts["cuda"] = torch.version.cuda
    for package in _PACKAGES:
        try:
            facts[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return facts


def _name_device(device: str) -> str:
    return f"{device}, {torch.cuda.get_device_name(device)}" if device.startswith("cuda") else device


def name_processor() -> str:
    """Returns the CPU's model name, as far as the system reports it."""
    try:
        with Path("/proc/cpuinfo").open() as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:  # not Linux
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def find_git_commit() -> str:
    """Returns the checked-out commit, with '-dirty' if there are changes, or 'unknown' outside a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        folder = Path(__file__).parent
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
