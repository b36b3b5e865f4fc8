"""A model whose batches go through memory that stays in place: for GPUs. Free of torch."""

import contextlib
import ctypes
import math
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from model.canvas import Canvases

_TYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
_PORTABLE = 1  # CU_MEMHOSTALLOC_PORTABLE: page-locked for whatever context copies it

BatchShape = tuple[int, ...]  # (B, H, W, 3)


class BoundSession:
    """Computes each shape of batch by a session of its own; its size is filled up to a power of two.

    ONNX Runtime's convolutions keep what cuDNN has planned for the last shape alone, so that shapes in turn are slow;
    and shapes that are known leave nothing for the CPU to compute, which CUDA graphs need. Canvases are uploaded as
    bytes, out of page-locked memory.

    `open_for` opens the session for a shape (B, H, W, 3), and `device` is "cuda", or "cpu" to try it out. Where
    `captures` is set, the first run of a shape records a CUDA graph, which later ones start as one. No other thread may
    use CUDA meanwhile: all of such sessions are opened and run by one.
    """

    _capturing = ThreadPoolExecutor(1, "cuda-graphs")  # its thread begins with the first work

    def __init__(self, open_for: Callable[[BatchShape], ort.InferenceSession], device: str, captures: bool) -> None:
        self._open_for = open_for
        self._device = device
        self._captures = captures
        self._lock = threading.Lock()
        self._of_shape: dict[BatchShape, _Sized] = {}

    def infer(self, names: Sequence[str], canvases: Canvases) -> list[NDArray[Any]]:
        """Runs canvases of one shape as a batch, and returns the outputs of these names."""
        if self._captures:
            return self._capturing.submit(self._infer, names, canvases).result()
        return self._infer(names, canvases)

    def _infer(self, names: Sequence[str], canvases: Canvases) -> list[NDArray[Any]]:
        shape = (1 << (len(canvases) - 1).bit_length(), *canvases[0].shape)
        with self._lock:
            if shape not in self._of_shape:
                self._of_shape[shape] = _Sized(self._open_for(shape), shape, self._device)
        return self._of_shape[shape].run(names, canvases)


class _Sized:
    """A session for batches of one shape, and memory for as many of them as there are at once."""

    def __init__(self, session: ort.InferenceSession, shape: BatchShape, device: str) -> None:
        self._session = session
        self._shape = shape
        self._device = device
        self._free: list[_Buffers] = []

    def run(self, names: Sequence[str], canvases: Canvases) -> list[NDArray[Any]]:
        with self._lend() as buffers:
            return buffers.run(self._session, names, canvases)

    @contextlib.contextmanager
    def _lend(self) -> Iterator["_Buffers"]:
        try:
            buffers = self._free.pop()
        except IndexError:
            buffers = _Buffers(self._session, self._shape, self._device)
        try:
            yield buffers
        finally:
            self._free.append(buffers)


class _Buffers:
    """What a batch is computed in."""

    def __init__(self, session: ort.InferenceSession, shape: BatchShape, device: str) -> None:
        def allocate(shape: Sequence[int], kind: type) -> Any:
            return ort.OrtValue.ortvalue_from_shape_and_type(shape, kind, device, 0)

        self._binding = session.io_binding()
        self._images = allocate(shape, np.uint8)
        self._images.update_inplace(np.zeros(shape, np.uint8))  # by it the thread is CUDA's, as page-locking needs
        self._binding.bind_ortvalue_input("images", self._images)
        self._outputs = {
            each.name: allocate([shape[0], *each.shape[1:]], _TYPES[each.type]) for each in session.get_outputs()
        }
        for name, value in self._outputs.items():
            self._binding.bind_ortvalue_output(name, value)
        self._canvases = np.empty(shape, np.uint8) if device == "cpu" else allocate_page_locked(shape)

    def run(self, session: ort.InferenceSession, names: Sequence[str], canvases: Canvases) -> list[NDArray[Any]]:
        count = len(canvases)
        np.stack(canvases, out=self._canvases[:count])  # the rest is of former batches, and its outputs are not read
        self._images.update_inplace(self._canvases)
        session.run_with_iobinding(self._binding)
        self._binding.synchronize_outputs()
        return [self._outputs[name].numpy()[:count].copy() for name in names]  # the next run writes there


def allocate_page_locked(shape: BatchShape) -> NDArray[np.uint8]:
    """Returns memory that a GPU reads by itself, where CUDA's driver gives some; out of any other it is copied twice.

    By the driver, which is there where a GPU is: ONNX Runtime gives Python no such memory. The calling thread must have
    used the GPU before.
    """
    size = math.prod(shape)
    address = ctypes.c_void_p()
    driver = find_driver()
    if driver and driver.cuMemHostAlloc(ctypes.byref(address), ctypes.c_size_t(size), ctypes.c_uint(_PORTABLE)) == 0:
        assert address.value
        memory = (ctypes.c_uint8 * size).from_address(address.value)
        weakref.finalize(memory, driver.cuMemFreeHost, address)
        return np.ctypeslib.as_array(memory).reshape(shape)
    return np.empty(shape, np.uint8)


def find_driver() -> ctypes.CDLL | None:
    """Returns CUDA's driver; None where there is none, and so no GPU of NVIDIA's that could be used."""
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
