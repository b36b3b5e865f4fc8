"""A session whose batches go through memory that stays in place: for GPUs. Free of torch."""

import ctypes
import itertools
import math
import sys
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

_TYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
_PORTABLE = 1  # CU_MEMHOSTALLOC_PORTABLE: page-locked for whatever context copies it


class BoundSession(ort.InferenceSession):  # type: ignore[misc]  # ONNX Runtime has no types
    """Uploads canvases as bytes, out of page-locked memory, and computes all batches of a shape in the same memory.

    `device` is "cuda", or "cpu" to try it out. Where `captures` is set, the first run of a shape records a CUDA graph,
    which later ones start as one. ONNX Runtime keeps the graphs of each thread for itself, and lets only one thread run
    such a session: all of its runs are then those of a thread of its own.
    """

    def __init__(self, path: Any, options: ort.SessionOptions, device: str, captures: bool, **rest: Any) -> None:
        super().__init__(path, options, **rest)
        self._device = device
        self._shapes = itertools.count(1)  # 0 is ONNX Runtime's own
        self._own = _Own()
        self._captures = captures
        self._runner = ThreadPoolExecutor(1, "cuda-graphs") if captures else None

    def infer(self, names: Sequence[str], canvases: Sequence[NDArray[np.uint8]]) -> list[NDArray[Any]]:
        """Runs canvases of one shape as a batch, and returns the outputs of these names."""
        if self._runner:
            return self._runner.submit(self._infer, names, canvases).result()
        return self._infer(names, canvases)

    def _infer(self, names: Sequence[str], canvases: Sequence[NDArray[np.uint8]]) -> list[NDArray[Any]]:
        buffers = self._own.buffers
        shape = (len(canvases), *canvases[0].shape)
        if shape not in buffers:
            buffers[shape] = _Buffers(self, shape, self._device, next(self._shapes) if self._captures else None)
        return buffers[shape].run(names, canvases)


class _Own(threading.local):
    """Each thread's buffers, by shape: several threads may run at once."""

    def __init__(self) -> None:
        self.buffers: dict[tuple[int, ...], _Buffers] = {}


class _Buffers:
    """What one thread computes batches of one shape with."""

    def __init__(self, session: BoundSession, shape: tuple[int, ...], device: str, graph: int | None) -> None:
        def allocate(shape: Sequence[int], kind: type) -> Any:
            return ort.OrtValue.ortvalue_from_shape_and_type(shape, kind, device, 0)

        self._run = session.run_with_iobinding
        self._binding = session.io_binding()
        self._images = allocate(shape, np.uint8)
        self._binding.bind_ortvalue_input("images", self._images)
        self._outputs = {
            each.name: allocate([shape[0], *each.shape[1:]], _TYPES[each.type]) for each in session.get_outputs()
        }
        for name, value in self._outputs.items():
            self._binding.bind_ortvalue_output(name, value)
        self._options = ort.RunOptions()
        if graph is not None:
            self._options.add_run_config_entry("gpu_graph_id", str(graph))
        self._canvases = np.empty(shape, np.uint8) if device == "cpu" else allocate_page_locked(shape)

    def run(self, names: Sequence[str], canvases: Sequence[NDArray[np.uint8]]) -> list[NDArray[Any]]:
        np.stack(canvases, out=self._canvases)
        self._images.update_inplace(self._canvases)
        self._run(self._binding, self._options)
        self._binding.synchronize_outputs()
        return [np.array(self._outputs[name].numpy()) for name in names]  # a copy: the next run writes there


def allocate_page_locked(shape: tuple[int, ...]) -> NDArray[np.uint8]:
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
        return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
