"""The GPU's session, run on the CPU; the tests that need a GPU are in tests/gpu."""

import ctypes
import gc
import mmap
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from app.settings import find_shipped_model
from model import bound_session
from model.bound_session import BatchShape, BoundSession, allocate_page_locked
from model.detector import Detector
from model.gpu import Gpu, Provider, ProviderUnavailable, choose_cuda, choose_tensorrt, fix_shape
from model.session import build_options, open_session
from tests.app.colours import BLUE, GREEN, HEIGHT, RED, WIDTH, paint, save_rectangular_model

NAMES = ["boxes", "scores", "labels"]
CANVASES = [
    paint(WIDTH, HEIGHT, (colour, (8 * number, 8, 8 * number + 16, 40)))
    for number, colour in enumerate([RED, GREEN, BLUE, RED, GREEN])
]


def open_bound(path: Path, captures: bool = False, opened: list[BatchShape] | None = None) -> BoundSession:
    model = open_session(path)

    def open_for(shape: BatchShape) -> ort.InferenceSession:
        if opened is not None:
            opened.append(shape)
        options = build_options(1)
        fix_shape(options, model, shape)
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        assert tuple(session.get_inputs()[0].shape) == shape
        return session

    return BoundSession(open_for, "cpu", captures)


@pytest.mark.parametrize("captures", [False, True])
def test_batches_of_all_sizes_equal_those_of_a_plain_session(model_path: Path, captures: bool) -> None:
    plain = ort.InferenceSession(model_path, providers=["CPUExecutionProvider"])
    bound = open_bound(model_path, captures)
    batches = [CANVASES[:1], CANVASES[1:2], CANVASES[:4], CANVASES[1:5], CANVASES[2:3]]
    found = [bound.infer(NAMES, batch) for batch in batches]  # later batches must not overwrite earlier results
    for batch, outputs in zip(batches, found, strict=True):
        for output, expected in zip(outputs, plain.run(NAMES, {"images": np.stack(batch)}), strict=True):
            np.testing.assert_array_equal(output, expected)


@pytest.mark.parametrize("is_bound", [False, True])
def test_a_stopped_detector_computes_no_more(model_path: Path, is_bound: bool) -> None:
    detector = Detector(model_path, "cpu", 1)
    if is_bound:
        detector._session = open_bound(model_path)
    assert len(detector.infer(CANVASES)) == len(CANVASES)
    detector.stop()
    with pytest.raises(Exception, match=r"terminate flag|has been stopped"):
        detector.infer(CANVASES)


def test_each_shape_has_a_session_and_batches_are_padded_to_powers_of_two(tmp_path: Path) -> None:
    opened: list[BatchShape] = []
    bound = open_bound(save_rectangular_model(tmp_path / "rectangles.onnx"), opened=opened)
    for size in (3, 1, 4, 2, 5):
        assert [len(each) for each in bound.infer(NAMES, [np.zeros((64, 96, 3), np.uint8)] * size)] == [size] * 3
    bound.infer(NAMES, [np.zeros((96, 96, 3), np.uint8)])
    assert opened == [(4, 64, 96, 3), (1, 64, 96, 3), (2, 64, 96, 3), (8, 64, 96, 3), (1, 96, 96, 3)]


@pytest.mark.parametrize("name", ["default-fp32", "default"])
def test_shipped_model_with_a_fixed_shape_has_no_shape_operators(name: str, tmp_path: Path) -> None:
    path = find_shipped_model(name)
    kinds = []
    for shape in (None, (2, 320, 320, 3)):
        options = build_options(1)
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        if shape:
            fix_shape(options, open_session(path), shape)
        ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        kinds.append({node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node})
    # shape operators run on the CPU: their results would be copied to the GPU, and CUDA graphs refused
    assert [kind & {"Shape", "Range", "Expand"} for kind in kinds] == [{"Shape", "Range", "Expand"}, set()]


def test_detector_has_one_shape_on_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = save_rectangular_model(tmp_path / "rectangles.onnx")
    monkeypatch.setattr("model.detector.open_on_gpu", lambda *_: open_bound(path))
    on_cpu, on_gpu = Detector(path, "cpu"), Detector(path, "cuda")
    assert (on_gpu.provider, on_gpu.shapes) == ("cuda", on_cpu.shapes[-1:])
    wide = on_gpu.prepare(paint(192, 128, (RED, (0, 0, 192, 128))))
    assert [each.labels.tolist() for each in on_gpu.infer([wide.pixels] * 3)] == [[0]] * 3


def test_threads_do_not_share_memory(model_path: Path) -> None:
    bound, both = open_bound(model_path), threading.Barrier(2)

    def find(number: int) -> set[float]:
        both.wait(30)
        return {float(bound.infer(NAMES, [CANVASES[number]])[0][0, 0, 0]) for _ in range(200)}

    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(find, [0, 1])) == [{0.0}, {8.0}]


def test_session_with_cuda_graphs_runs_in_one_thread_of_its_own(
    model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound, seen = open_bound(model_path, captures=True), set()

    def run(*_: object) -> list[Any]:
        seen.add(threading.current_thread())
        return []

    monkeypatch.setattr(bound, "_infer", run)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda canvas: bound.infer(NAMES, [canvas]), CANVASES))
    assert len(seen) == 1 and threading.current_thread() not in seen


class Driver:
    """A stand-in for CUDA's driver that allocates on the heap instead of in page-locked memory."""

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


def test_page_locked_memory_is_freed_once_nothing_refers_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_pageable_memory_is_used_if_page_locked_memory_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail_to_load(_: str) -> None:
        raise OSError

    for load in (fail_to_load, lambda _: Driver(status=2)):
        monkeypatch.setattr(bound_session.ctypes, "CDLL", load)
        canvases = allocate_page_locked((2, 4, 6, 3))
        canvases[:] = 7
        assert (canvases.shape, canvases.dtype) == ((2, 4, 6, 3), np.uint8)


def test_tensorrt_engines_are_cached_in_the_configured_folder(tmp_path: Path) -> None:
    name, options = choose_tensorrt(Gpu(engine_cache=tmp_path, half=True))
    assert name == "TensorrtExecutionProvider"
    assert options == {
        "trt_op_types_to_exclude": "Cast,Transpose",
        "trt_fp16_enable": "1",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(tmp_path),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(tmp_path),
    }
    assert choose_tensorrt(Gpu())[1] == {"trt_op_types_to_exclude": "Cast,Transpose", "trt_fp16_enable": "0"}


def test_provider_options_exist_in_onnx_runtime(tmp_path: Path) -> None:
    everything = [choose_cuda(Gpu(cuda_graphs=True)), choose_tensorrt(Gpu(engine_cache=tmp_path))]
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
def test_options_of_another_provider_are_refused(model_path: Path, provider: Provider, gpu: Gpu) -> None:
    with pytest.raises(ProviderUnavailable, match=f"provider is {provider}"):
        Detector(model_path, provider, 1, gpu)
