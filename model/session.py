"""Opens ONNX Runtime sessions on the CPU, and counts its CPUs. Free of torch."""

import contextlib
import os
from pathlib import Path

import onnxruntime as ort

from model.metadata import InvalidModel

_SPIN_MICROSECONDS = 50  # longer than most operators take, and nothing beside a request


def count_cpus() -> int:
    """Returns how many CPUs this process may use: its affinity, and its container's quota where there is one."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for files in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):  # cgroups 2, cgroups 1
        with contextlib.suppress(OSError, ValueError):
            quota, period = " ".join(Path("/sys/fs/cgroup", name).read_text() for name in files).split()
            if quota not in ("max", "-1"):
                cpus = min(cpus, max(1, int(quota) // int(period)))
    return cpus


def open_session(path: Path, threads: int | None = None) -> ort.InferenceSession:
    """Opens the model on the CPU, with all its threads or so many; raises `InvalidModel` for a file that is none."""
    try:
        return ort.InferenceSession(path, build_options(threads), providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own exceptions share no other base
        raise InvalidModel(f"{path}: it cannot be opened: {error}") from error


def build_options(threads: int | None = None) -> ort.SessionOptions:
    """Returns the options of any session."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or count_cpus()
    options.log_severity_level = 3
    # a thread that sleeps between two operators wakes too late; one that never sleeps burns a core between requests
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(_SPIN_MICROSECONDS))
    return options
