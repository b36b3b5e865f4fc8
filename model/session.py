"""Opens ONNX Runtime sessions on the CPU or on CUDA. Free of torch."""

import contextlib
import io
import logging
import os
from pathlib import Path
from typing import Literal

import onnxruntime as ort

from model.metadata import InvalidModel

Provider = Literal["auto", "cpu", "cuda"]

_CUDA = "CUDAExecutionProvider"
# the exhaustive search takes over half a second for each new batch size, the heuristic one two milliseconds
_CUDA_OPTIONS = {"cudnn_conv_algo_search": "HEURISTIC"}

logger = logging.getLogger(__name__)


class ProviderUnavailable(Exception):
    """The provider that was asked for cannot run here; the message says why."""


def count_cpus() -> int:
    """Returns how many CPUs this process may use: its affinity, and its container's quota where there is one."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for files in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):  # cgroups 2, cgroups 1
        with contextlib.suppress(OSError, ValueError):
            quota, period = " ".join(Path("/sys/fs/cgroup", name).read_text() for name in files).split()
            if quota not in ("max", "-1"):
                cpus = min(cpus, max(1, int(quota) // int(period)))
    return cpus


def open_session(path: Path, provider: Provider = "auto", threads: int | None = None) -> ort.InferenceSession:
    """Opens the model on CUDA if it works, unless the CPU is asked for; `threads` are the CPU's, default all usable.

    Raises `InvalidModel` for a file that is no model, `ProviderUnavailable` where CUDA is asked for and does not work.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or count_cpus()
    options.log_severity_level = 3
    # spinning threads burn a core for a second after each request
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own exceptions share no other base
        raise InvalidModel(f"{path}: it cannot be opened: {error}") from error
    if provider == "cpu":
        return session
    try:
        return _open_on_cuda(path, options)
    except ProviderUnavailable as error:
        if provider == "cuda":
            raise
        logger.info("running on the CPU: %s", error)
        return session


def _open_on_cuda(path: Path, options: ort.SessionOptions) -> ort.InferenceSession:
    if _CUDA not in ort.get_available_providers():
        raise ProviderUnavailable("this build of ONNX Runtime has no CUDA")
    said = io.StringIO()
    with contextlib.redirect_stdout(said):  # it prints which library is missing, and returns nothing
        ort.preload_dlls()
    ort.set_default_logger_severity(4)  # the reason is reported here; its log would repeat it in colour
    try:
        session = ort.InferenceSession(path, options, providers=[(_CUDA, _CUDA_OPTIONS)], enable_fallback=0)
    except Exception as error:
        raise ProviderUnavailable(f"CUDA cannot be used: {error}") from error
    finally:
        ort.set_default_logger_severity(2)
    if _CUDA not in session.get_providers():
        reason = said.getvalue().strip().replace("\n", "; ") or "ONNX Runtime gives no reason"
        raise ProviderUnavailable(f"CUDA cannot be used: {reason}")
    return session
