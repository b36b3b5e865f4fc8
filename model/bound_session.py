"""Sessions with I/O binding to preallocated buffers, for GPUs."""

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
_PORTABLE = 1  # CU_MEMHOSTALLOC_PORTABLE: page-locked for all CUDA contexts

BatchShape = tuple[int, ...]  # (B, H, W, 3)


class BoundSession:
    """Runs each batch shape in a session of its own; batches are padded to a power of two.

    ONNX Runtime's convolutions cache cuDNN's plan for the last shape only, so that alternating shapes are slow; and
    with fixed shapes no operator is left to the CPU, as CUDA graphs require. Canvases are uploaded as uint8 from
    page-locked memory.

    `open_for` opens the session for a shape (B, H, W, 3); `device` is "cuda", or "cpu" for tests. With `cuda_graphs`
    the first run of a shape captures a CUDA graph, which later runs replay. No other thread may use CUDA during a
    capture, so one thread opens and runs all such sessions.
    """

    _graph_thread = ThreadPoolExecutor(1, "cuda-graphs")  # starts its thread on first use

    def __init__(self, open_for: Callable[[BatchShape], ort.InferenceSession], device: str, cuda_graphs: bool) -> None:
        self._open_for = open_for
        self._device = device
        self._cuda_graphs = cuda_graphs
        self._lock = threading.Lock()
        self._by_shape: dict[BatchShape, _FixedShapeSession] = {}

    def infer(self, names: Sequence[str], canvases: Canvases) -> list[NDArray[Any]]:
        """Runs canvases of one shape as a batch, and returns the outputs with these names."""
        if self._cuda_graphs:
            return self._graph_thread.submit(self._infer, names, canvases).result()
        return self._infer(names, canvases)

    def _infer(self, names: Sequence[str], canvases: Canvases) -> list[NDArray[Any]]:
        shape = (1 << (len(canvases) - 1).bit_length(), *canvases[0].shape)
        with self._lock:
            if shape not in self._by_shape:
                self._by_shape[shape] = _FixedShapeSession(self._open_for(shape), shape, self._device)
        return self._by_shape[shape].run(names, canvases)


class _FixedShapeSession:
    """A session for batches of one shape, and a pool of buffers, one for each batch in flight."""

    def __init__(self, session: ort.InferenceSession, shape: BatchShape, device: str) -> None:
        self._session = session
        self._shape = shape
        self._device = device
        self._free: list[_Buffers] = []

    def run(self, names: Sequence[str], canvases: Canvases) -> list[NDArray[Any]]:
        with self._borrow_buffers() as buffers:
            return buffers.run(self._session, names, canvases)

    @contextlib.contextmanager
    def _borrow_buffers(self) -> Iterator["_Buffers"]:
        try:
            buffers = self._free.pop()
        except IndexError:
            buffers = _Buffers(self._session, self._shape, self._device)
        try:
            yield buffers
        finally:
            self._free.append(buffers)


class _Buffers:
    """Input and output memory for one batch."""

    def __init__(self, session: ort.InferenceSession, shape: BatchShape, device: str) -> None:
        def allocate(shape: Sequence[int], dtype: type) -> Any:
            return ort.OrtValue.ortvalue_from_shape_and_type(shape, dtype, device, 0)

        self._binding = session.io_binding()
        self._images = allocate(shape, np.uint8)
        # gives this thread a CUDA context, which page-locking needs
        self._images.update_inplace(np.zeros(shape, np.uint8))
        self._binding.bind_ortvalue_input("images", self._images)
        self._outputs = {
            each.name: allocate([shape[0], *each.shape[1:]], _TYPES[each.type]) for each in session.get_outputs()
        }
        for name, value in self._outputs.items():
            self._binding.bind_ortvalue_output(name, value)
        self._canvases = np.empty(shape, np.uint8) if device == "cpu" else allocate_page_locked(shape)

    def run(self, session: ort.InferenceSession, names: Sequence[str], canvases: Canvases) -> list[NDArray[Any]]:
        count = len(canvases)
        np.stack(canvases, out=self._canvases[:count])  # the rest is from earlier batches; its outputs are not read
        self._images.update_inplace(self._canvases)
        session.run_with_iobinding(self._binding)
        self._binding.synchronize_outputs()
        return [self._outputs[name].numpy()[:count].copy() for name in names]  # the next run overwrites them


def allocate_page_locked(shape: BatchShape) -> NDArray[np.uint8]:
    """Allocates page-locked memory, which a GPU reads without a second copy; ordinary memory if that fails.

    Uses the CUDA driver, as ONNX Runtime has no Python API for it. The calling thread must have used the GPU before.
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
    """Returns the CUDA driver library, or None if it is not installed, so that no NVIDIA GPU can be used."""
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
