"""What a GPU's session does, by the same code on the CPU; tests/gpu has what needs a GPU."""

import ctypes
import gc
import mmap
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from model import bound_session
from model.bound_session import BoundSession, allocate_page_locked
from model.session import Gpu, Provider, ProviderUnavailable, choose_cuda, choose_tensorrt, open_session
from tests.app.colours import BLUE, GREEN, HEIGHT, RED, WIDTH, paint

NAMES = ["boxes", "scores", "labels"]
CANVASES = [
    paint(WIDTH, HEIGHT, (colour, (8 * number, 8, 8 * number + 16, 40)))
    for number, colour in enumerate([RED, GREEN, BLUE, RED, GREEN])
]


def open_bound(path: Path, captures: bool = False) -> BoundSession:
    return BoundSession(path, ort.SessionOptions(), "cpu", captures, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("captures", [False, True])
def test_batches_of_all_sizes_are_computed_as_by_a_plain_session(model_path: Path, captures: bool) -> None:
    plain = ort.InferenceSession(model_path, providers=["CPUExecutionProvider"])
    bound = open_bound(model_path, captures)
    batches = [CANVASES[:1], CANVASES[1:2], CANVASES[:4], CANVASES[1:5], CANVASES[2:3]]
    found = [bound.infer(NAMES, batch) for batch in batches]  # what is found stays so when the memory is used again
    for batch, outputs in zip(batches, found, strict=True):
        for output, expected in zip(outputs, plain.run(NAMES, {"images": np.stack(batch)}), strict=True):
            np.testing.assert_array_equal(output, expected)


def test_threads_do_not_share_memory(model_path: Path) -> None:
    bound, both = open_bound(model_path), threading.Barrier(2)

    def find(number: int) -> set[float]:
        both.wait(30)
        return {float(bound.infer(NAMES, [CANVASES[number]])[0][0, 0, 0]) for _ in range(200)}

    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(find, [0, 1])) == [{0.0}, {8.0}]


def test_a_session_that_records_graphs_is_run_by_one_thread(model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bound, seen = open_bound(model_path, captures=True), set()

    def run(*_: object) -> list[Any]:
        seen.add(threading.current_thread())
        return []

    monkeypatch.setattr(bound, "_infer", run)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda canvas: bound.infer(NAMES, [canvas]), CANVASES))
    assert len(seen) == 1 and threading.current_thread() not in seen


class Driver:
    """Gives page-locked memory as CUDA's driver does, but out of the heap."""

    def __init__(self, status: int = 0) -> None:
        self.status = status
        self.held: dict[int, Any] = {}

    def cuMemHostAlloc(self, address: Any, size: ctypes.c_size_t, flags: ctypes.c_uint) -> int:  # noqa: N802
        memory = ctypes.create_string_buffer(size.value)
        address._obj.value = ctypes.addressof(memory)
        self.held[address._obj.value] = memory
        return self.status

    def cuMemFreeHost(self, address: ctypes.c_void_p) -> int:  # noqa: N802
        assert address.value
        del self.held[address.value]
        return 0


def test_page_locked_memory_is_the_drivers_until_nobody_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver()
    monkeypatch.setattr(bound_session.ctypes, "CDLL", lambda name: {"libcuda.so.1": driver}[name])
    canvases = allocate_page_locked((2, HEIGHT, WIDTH, 3))
    canvases[:] = CANVASES[:2]
    [(address, memory)] = driver.held.items()
    assert (canvases.ctypes.data, len(memory)) == (address, 2 * HEIGHT * WIDTH * 3)
    part = canvases[1]
    del canvases
    gc.collect()
    assert driver.held and (part == CANVASES[1]).all()
    del part
    gc.collect()
    assert not driver.held


def test_without_a_driver_or_its_memory_any_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_none(_: str) -> None:
        raise OSError

    for find in (find_none, lambda _: Driver(status=2)):
        monkeypatch.setattr(bound_session.ctypes, "CDLL", find)
        canvases = allocate_page_locked((2, 4, 6, 3))
        canvases[:] = 7
        assert (canvases.shape, canvases.dtype) == ((2, 4, 6, 3), np.uint8)


def test_one_engine_of_tensorrt_serves_all_batches_where_the_sides_are_known(tmp_path: Path) -> None:
    name, options = choose_tensorrt(Gpu(engine_cache=tmp_path, half=True), ["batch", 320, 416, 3])
    assert name == "TensorrtExecutionProvider"
    assert options == {
        "trt_fp16_enable": "1",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(tmp_path),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(tmp_path),
        "trt_profile_min_shapes": "images:1x320x416x3",
        "trt_profile_opt_shapes": "images:32x320x416x3",
        "trt_profile_max_shapes": "images:64x320x416x3",
    }
    assert choose_tensorrt(Gpu(), ["batch", "height", "width", 3])[1] == {"trt_fp16_enable": "0"}


def test_options_are_those_that_the_libraries_know(tmp_path: Path) -> None:
    everything = [choose_cuda(Gpu(cuda_graphs=True)), choose_tensorrt(Gpu(engine_cache=tmp_path), ["n", 320, 320, 3])]
    for library, (_, options) in zip(("cuda", "tensorrt"), everything, strict=True):
        path = Path(ort.__file__).parent / "capi" / f"libonnxruntime_providers_{library}.so"
        if not path.exists():
            pytest.skip(f"this build of ONNX Runtime is without {path.name}")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            unknown = [name for name in options if content.find(b"\0" + name.encode() + b"\0") < 0]
        assert options and not unknown


@pytest.mark.parametrize(
    ("provider", "gpu"),
    [("cpu", Gpu(cuda_graphs=True)), ("tensorrt", Gpu(cuda_graphs=True)), ("cuda", Gpu(half=True))],
)
def test_what_the_provider_does_not_have_is_not_ignored(model_path: Path, provider: Provider, gpu: Gpu) -> None:
    with pytest.raises(ProviderUnavailable, match=f"provider is {provider}"):
        open_session(model_path, provider, 1, gpu)
