"""Opens ONNX Runtime sessions on the CPU, on CUDA or on TensorRT. Free of torch."""

import contextlib
import dataclasses
import importlib
import io
import logging
import os
from pathlib import Path
from typing import Any, Literal

import onnxruntime as ort

from model.bound_session import BoundSession, find_driver
from model.metadata import InvalidModel

Provider = Literal["auto", "cpu", "cuda", "tensorrt"]

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
_NAMES = {"cuda": "CUDA", "tensorrt": "TensorRT"}
# the exhaustive search takes over half a second for each new batch size, the heuristic one two milliseconds
_CUDA_OPTIONS = {"cudnn_conv_algo_search": "HEURISTIC"}
_SPIN_MICROSECONDS = 50  # longer than most operators take, and nothing beside a request
_LARGEST_BATCH = 64  # that one engine of TensorRT is built for; a larger one has another built

logger = logging.getLogger(__name__)


class ProviderUnavailable(Exception):
    """The provider that was asked for cannot run here; the message says why."""


@dataclasses.dataclass(frozen=True)
class Gpu:
    """How a GPU computes: on CUDA with `cuda_graphs`; on TensorRT in `half`, and with engines kept in a folder."""

    cuda_graphs: bool = False
    engine_cache: Path | None = None
    half: bool = False


def count_cpus() -> int:
    """Returns how many CPUs this process may use: its affinity, and its container's quota where there is one."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for files in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):  # cgroups 2, cgroups 1
        with contextlib.suppress(OSError, ValueError):
            quota, period = " ".join(Path("/sys/fs/cgroup", name).read_text() for name in files).split()
            if quota not in ("max", "-1"):
                cpus = min(cpus, max(1, int(quota) // int(period)))
    return cpus


def open_session(
    path: Path, provider: Provider = "auto", threads: int | None = None, gpu: Gpu | None = None
) -> ort.InferenceSession:
    """Opens the model on the provider; "auto" is CUDA if it works, else the CPU. `threads` are the CPU's, default all.

    On a GPU the session is a `BoundSession`. Raises `InvalidModel` for a file that is no model, `ProviderUnavailable`
    where CUDA or TensorRT is asked for and does not work.
    """
    gpu = gpu or Gpu()
    if gpu.cuda_graphs and provider not in ("auto", "cuda"):
        raise ProviderUnavailable(f"cuda_graphs are CUDA's, and the provider is {provider}: leave them out")
    if (gpu.engine_cache or gpu.half) and provider != "tensorrt":
        raise ProviderUnavailable(f"engine_cache and tensorrt_half are TensorRT's, and the provider is {provider}")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or count_cpus()
    options.log_severity_level = 3
    # a thread that sleeps between two operators wakes too late; one that never sleeps burns a core between requests
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(_SPIN_MICROSECONDS))
    try:
        session = ort.InferenceSession(path, options, providers=[PROVIDERS["cpu"]])
    except Exception as error:  # ONNX Runtime's own exceptions share no other base
        raise InvalidModel(f"{path}: it cannot be opened: {error}") from error
    if provider == "cpu":
        return session
    try:
        if provider == "tensorrt":
            return _open_on_tensorrt(path, options, gpu, session.get_inputs()[0].shape)
        return _open_on_gpu("cuda", path, options, [choose_cuda(gpu)], gpu.cuda_graphs)
    except ProviderUnavailable as error:
        if provider != "auto":
            raise
        logger.info("running on the CPU: %s", error)
        return session


def find_provider(session: ort.InferenceSession) -> str:
    """Returns where the session really runs: "cpu", "cuda" or "tensorrt"."""
    used = session.get_providers()
    return next((name for name in ("tensorrt", "cuda") if PROVIDERS[name] in used), "cpu")


def choose_cuda(gpu: Gpu) -> tuple[str, dict[str, str]]:
    """Returns CUDA's options."""
    return PROVIDERS["cuda"], _CUDA_OPTIONS | ({"enable_cuda_graph": "1"} if gpu.cuda_graphs else {})


def choose_tensorrt(gpu: Gpu, shape: list[Any]) -> tuple[str, dict[str, str]]:
    """Returns TensorRT's options for images of `shape`, whose sides are names where they are free.

    One engine serves every batch where the sides are known; else TensorRT builds one as it meets a size.
    """
    options = {"trt_fp16_enable": "1" if gpu.half else "0"}
    if gpu.engine_cache:
        folder = str(gpu.engine_cache)
        options |= {"trt_engine_cache_enable": "1", "trt_engine_cache_path": folder}
        options |= {"trt_timing_cache_enable": "1", "trt_timing_cache_path": folder}
    if all(isinstance(side, int) for side in shape[1:]):
        sides = "x".join(map(str, shape[1:]))
        for name, batch in {"min": 1, "opt": _LARGEST_BATCH // 2, "max": _LARGEST_BATCH}.items():
            options[f"trt_profile_{name}_shapes"] = f"images:{batch}x{sides}"
    return PROVIDERS["tensorrt"], options


def _open_on_tensorrt(path: Path, options: ort.SessionOptions, gpu: Gpu, shape: list[Any]) -> ort.InferenceSession:
    with contextlib.suppress(ImportError):
        importlib.import_module("tensorrt")  # its wheel loads the libraries; they may be the system's own
    return _open_on_gpu("tensorrt", path, options, [choose_tensorrt(gpu, shape), choose_cuda(Gpu())], False)


def _open_on_gpu(
    provider: str,
    path: Path,
    options: ort.SessionOptions,
    providers: list[tuple[str, dict[str, str]]],
    captures: bool,
) -> ort.InferenceSession:
    name = _NAMES[provider]
    if PROVIDERS[provider] not in ort.get_available_providers():
        raise ProviderUnavailable(f"this build of ONNX Runtime has no {name}")
    if not find_driver():  # known at once; CUDA's own libraries are large
        raise ProviderUnavailable(f"{name} cannot be used: there is no NVIDIA driver")
    said = io.StringIO()
    with contextlib.redirect_stdout(said):  # it prints which library is missing, and returns nothing
        ort.preload_dlls()
    ort.set_default_logger_severity(4)  # the reason is reported here; its log would repeat it in colour
    try:
        session = BoundSession(path, options, "cuda", captures, providers=providers, enable_fallback=0)
    except Exception as error:
        raise ProviderUnavailable(f"{name} cannot be used: {error}") from error
    finally:
        ort.set_default_logger_severity(2)
    if PROVIDERS[provider] not in session.get_providers():
        reason = said.getvalue().strip().replace("\n", "; ") or "ONNX Runtime gives no reason"
        raise ProviderUnavailable(f"{name} cannot be used: {reason}")
    return session
