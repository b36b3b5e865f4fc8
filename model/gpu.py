"""Opens models on an NVIDIA GPU, with CUDA or TensorRT."""

import contextlib
import dataclasses
import importlib
import io
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from model.bound_session import BatchShape, BoundSession, find_driver
from model.errors import UserError
from model.session import build_options

GpuProvider = Literal["cuda", "tensorrt"]
Provider = Literal["auto", "cpu", GpuProvider]

_CUDA, _TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"
# exhaustive search takes over half a second for each new shape, the heuristic two milliseconds
_CUDA_OPTIONS = {"cudnn_conv_algo_search": "HEURISTIC"}
# TensorRT cannot transpose uint8, and in fp16 it would round cell indices, which are cast back and forth
_TENSORRT_OPTIONS = {"trt_op_types_to_exclude": "Cast,Transpose"}


class ProviderUnavailable(UserError):
    """The requested provider cannot run here; the message says why."""


@dataclasses.dataclass(frozen=True)
class Gpu:
    """Provider options: `cuda_graphs` for CUDA; for TensorRT the folder `engine_cache`, and `half` for fp16."""

    cuda_graphs: bool = False
    engine_cache: Path | None = None
    half: bool = False

    def check(self, provider: Provider) -> None:
        """Raises `ProviderUnavailable` for options that the provider does not have."""
        if self.cuda_graphs and provider not in ("auto", "cuda"):
            raise ProviderUnavailable(f"cuda_graphs are CUDA's, and the provider is {provider}: leave them out")
        if (self.engine_cache or self.half) and provider != "tensorrt":
            raise ProviderUnavailable(f"engine_cache and tensorrt_half are TensorRT's, and the provider is {provider}")


def open_on_gpu(
    path: Path,
    provider: GpuProvider,
    model: ort.InferenceSession,
    blank: NDArray[np.uint8],
    threads: int | None,
    gpu: Gpu,
) -> BoundSession:
    """Opens the model at `path`, whose CPU session is `model`, on the GPU, and runs a `blank` canvas.

    Raises `ProviderUnavailable` if either fails: some missing libraries are noticed only in a run.
    """
    name = {"cuda": "CUDA", "tensorrt": "TensorRT"}[provider]
    providers = [choose_cuda(gpu)] if provider == "cuda" else [choose_tensorrt(gpu), choose_cuda(Gpu())]
    if providers[0][0] not in ort.get_available_providers():
        raise ProviderUnavailable(f"this build of ONNX Runtime has no {name}")
    if not find_driver():  # checked first: CUDA's libraries are large to load
        raise ProviderUnavailable(f"{name} cannot be used: there is no NVIDIA driver")
    if provider == "tensorrt":
        with contextlib.suppress(ImportError, OSError):
            importlib.import_module("tensorrt")  # loads its wheel's libraries, unless the system has them
    preload_output = io.StringIO()
    with contextlib.redirect_stdout(preload_output):  # it prints which library is missing, and returns nothing
        ort.preload_dlls()
    outputs = [each.name for each in model.get_outputs()]

    def open_for(shape: BatchShape) -> ort.InferenceSession:
        options = build_options(threads)
        fix_shape(options, model, shape)
        session = ort.InferenceSession(path, options, providers=providers, enable_fallback=0)
        if providers[0][0] not in session.get_providers():
            reason = preload_output.getvalue().strip().replace("\n", "; ")
            raise ProviderUnavailable(reason or "ONNX Runtime gives no reason")
        return session

    session = BoundSession(open_for, "cuda", gpu.cuda_graphs)
    ort.set_default_logger_severity(4)  # the exception reports the reason; ONNX Runtime's log would repeat it
    try:
        session.infer(outputs, [blank])
    except Exception as error:  # ONNX Runtime's own exceptions share no other base
        raise ProviderUnavailable(f"{name} cannot be used: {error}") from error
    finally:
        ort.set_default_logger_severity(2)
    return session


def fix_shape(options: ort.SessionOptions, model: ort.InferenceSession, shape: BatchShape) -> None:
    """Fixes the model's dynamic input dimensions to this batch shape, (B, H, W, 3)."""
    for name, length in zip(model.get_inputs()[0].shape, shape, strict=True):
        if isinstance(name, str):
            options.add_free_dimension_override_by_name(name, length)


def choose_cuda(gpu: Gpu) -> tuple[str, dict[str, str]]:
    """Returns the CUDA provider's name and options."""
    return _CUDA, _CUDA_OPTIONS | ({"enable_cuda_graph": "1"} if gpu.cuda_graphs else {})


def choose_tensorrt(gpu: Gpu) -> tuple[str, dict[str, str]]:
    """Returns the TensorRT provider's name and options."""
    options = _TENSORRT_OPTIONS | {"trt_fp16_enable": "1" if gpu.half else "0"}
    if gpu.engine_cache:
        folder = str(gpu.engine_cache)
        options |= {"trt_engine_cache_enable": "1", "trt_engine_cache_path": folder}
        options |= {"trt_timing_cache_enable": "1", "trt_timing_cache_path": folder}
    return _TENSORRT, options
