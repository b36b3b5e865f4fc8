"""Opens ONNX Runtime sessions on the CPU, and counts usable CPUs."""

import contextlib
import os
from pathlib import Path

import onnxruntime as ort

from model.metadata import InvalidModel

_CGROUPS = Path("/sys/fs/cgroup")
_SPIN_MICROSECONDS = 50  # longer than most operators take, negligible next to a request


def count_cpus(cgroups: Path = _CGROUPS) -> int:
    """Returns how many CPUs this process may use, by its affinity and its container's quota."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for files in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):  # cgroup v2, cgroup v1
        with contextlib.suppress(OSError, ValueError):
            quota, period = " ".join((cgroups / name).read_text() for name in files).split()
            if quota not in ("max", "-1"):
                cpus = min(cpus, max(1, int(quota) // int(period)))
    return cpus


def open_session(path: Path, threads: int | None = None) -> ort.InferenceSession:
    """Opens the model on the CPU, with `threads` threads or one per CPU; raises `InvalidModel` if that fails."""
    try:
        return ort.InferenceSession(path, build_options(threads), providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own exceptions share no other base
        raise InvalidModel(f"{path}: it cannot be opened: {error}") from error


def build_options(threads: int | None = None) -> ort.SessionOptions:
    """Returns the options that all sessions share."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or count_cpus()
    options.log_severity_level = 3
    # without spinning, threads wake up late for the next operator; with endless spinning they burn CPU between requests
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(_SPIN_MICROSECONDS))
    return options
