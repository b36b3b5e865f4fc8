import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from model.detector import Detector
from model.gpu import ProviderUnavailable
from model.metadata import InvalidModel
from tests.app.colours import (
    BLUE,
    GREEN,
    HEIGHT,
    PHOTO,
    PHOTO_PNG,
    RED,
    WIDTH,
    describe,
    encode,
    paint,
    save_model,
    save_rectangular_model,
)  # fmt: skip


@pytest.fixture(scope="module")
def detector(model_path: Path) -> Detector:
    return Detector(model_path, "cpu", 1)


@pytest.fixture(scope="module")
def rectangular(tmp_path_factory: pytest.TempPathFactory) -> Detector:
    return Detector(save_rectangular_model(tmp_path_factory.mktemp("model") / "rectangles.onnx"), "cpu", 1)


def test_boxes_are_in_image_pixels(detector: Detector) -> None:
    (found,) = detector.detect([PHOTO_PNG])
    assert found.labels.tolist() == [0, 1, 2]
    assert found.scores == pytest.approx([0.9, 0.6, 0.2])
    assert found.boxes_xyxy.tolist() == [[32, 16, 96, 64], [112, 80, 176, 112], [16, 96, 48, 112]]


@pytest.mark.parametrize("enlarged", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_boxes_scale_with_the_image(detector: Detector, kind: str, enlarged: int) -> None:
    photo = PHOTO.repeat(enlarged, axis=0).repeat(enlarged, axis=1)
    (found,) = detector.detect([encode(photo, kind, **({"subsampling": 0} if kind == "JPEG" else {}))])
    expected = np.array([[32, 16, 96, 64], [112, 80, 176, 112], [16, 96, 48, 112]]) * enlarged
    assert (found.boxes_xyxy == expected).all()


@pytest.mark.parametrize(("width", "height"), [(5 * WIDTH + 7, 5 * HEIGHT - 3), (2 * WIDTH, 9 * HEIGHT), (30, 20)])
def test_pixels_and_an_encoded_file_give_the_same_canvas(detector: Detector, width: int, height: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    assert (detector.prepare(noise).pixels == detector.prepare(encode(noise)).pixels).all()


@pytest.mark.parametrize(("width", "height"), [(4 * HEIGHT, 4 * HEIGHT), (4 * WIDTH, WIDTH)])
def test_padding_is_subtracted_from_the_boxes(detector: Detector, width: int, height: int) -> None:
    (found,) = detector.detect([encode(paint(width, height, (RED, (0, 0, width, height))))])
    assert found.boxes_xyxy[0].tolist() == [0, 0, width, height]


def test_batch_equals_single(detector: Detector) -> None:
    photos = [
        PHOTO_PNG,
        encode(paint(50, 200, (GREEN, (10, 20, 40, 60))), "JPEG"),
        encode(paint(300, 20, (BLUE, (0, 0, 30, 20)), (RED, (200, 5, 280, 15))), "WEBP"),
    ]
    for together, (alone,) in zip(detector.detect(photos), (detector.detect([photo]) for photo in photos), strict=True):
        assert (together.boxes_xyxy == alone.boxes_xyxy).all()
        assert (together.scores == alone.scores).all()
        assert (together.labels == alone.labels).all()


@pytest.mark.parametrize(
    ("properties", "message"),
    [
        ({}, "no metadata"),
        (describe(format_version=2).to_properties(), "format_version is 2"),
        (describe(labels=("red", "green")).to_properties(), "labels"),
        (describe(input_width=128).to_properties(), "128"),
    ],
)
def test_model_without_usable_metadata_is_refused(tmp_path: Path, properties: dict[str, str], message: str) -> None:
    path = save_model(tmp_path / "other.onnx", properties)
    with pytest.raises(InvalidModel, match=message) as caught:
        Detector(path, "cpu")
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("facts", "size", "message"),
    [
        ({}, ("rows", "columns"), r"its images are .*rows.*and its metadata says \[64, 96, 3\]"),
        ({"size_step": 16}, (HEIGHT, WIDTH), "any multiples of 16"),
        ({"size_step": 16}, ("rows", WIDTH), "any multiples of 16"),
        ({"size_step": 40}, ("rows", "columns"), r"\[64, 96, 3\], and multiples of 40"),
    ],
)
def test_model_whose_shapes_contradict_its_metadata_is_refused(
    tmp_path: Path, facts: dict[str, int], size: tuple[int | str, int | str], message: str
) -> None:
    path = save_model(tmp_path / "other.onnx", describe(**facts).to_properties(), size=size)
    with pytest.raises(InvalidModel, match=message):
        Detector(path, "cpu")


@pytest.mark.parametrize(
    ("width", "height", "shape"),
    [(192, 144, (80, 96)), (192, 128, (64, 96)), (96, 192, (96, 64)), (96, 96, (96, 96)), (384, 216, (64, 96))],
)
def test_image_is_computed_in_its_nearest_shape(
    rectangular: Detector, width: int, height: int, shape: tuple[int, int]
) -> None:
    photo = paint(width, height, (RED, (0, 0, width, height)))
    canvas = rectangular.prepare(photo)
    assert canvas.pixels.shape == (*shape, 3) and canvas.letterbox.shape == shape
    (found,) = rectangular.detect([encode(photo)])
    assert found.boxes_xyxy[0].tolist() == [0, 0, width, height]


def test_batch_of_several_shapes_equals_single_images(rectangular: Detector) -> None:
    boxes = [(RED, (10, 20, 40, 60)), (GREEN, (4, 4, 9, 30)), (BLUE, (0, 0, 50, 64))]
    sizes = [(96, 64), (64, 96), (96, 96), (96, 64), (80, 96), (64, 96)]
    photos = [encode(paint(*size, *boxes[: 1 + at % 3])) for at, size in enumerate(sizes)]
    for together, (alone,) in zip(
        rectangular.detect(photos), (rectangular.detect([photo]) for photo in photos), strict=True
    ):
        assert (together.boxes_xyxy == alone.boxes_xyxy).all()
        assert together.scores.tolist() == alone.scores.tolist() and together.labels.tolist() == alone.labels.tolist()
    assert rectangular.infer([]) == []


def test_model_with_a_fixed_batch_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match="batches of 2"):
        Detector(save_model(tmp_path / "fixed.onnx", batch=2), "cpu")


@pytest.mark.parametrize("content", [b"", b"not a model"])
def test_file_that_is_not_a_model_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "junk.onnx"
    path.write_bytes(content)
    with pytest.raises(InvalidModel, match=r"junk\.onnx"):
        Detector(path, "cpu")


def test_unavailable_gpu_is_not_silently_replaced_by_the_cpu(model_path: Path) -> None:
    try:
        detector = Detector(model_path, "cuda")
    except ProviderUnavailable as error:
        assert "CUDA" in str(error)
        assert Detector(model_path, "auto").provider == "cpu"
        with pytest.raises(ProviderUnavailable, match="TensorRT"):
            Detector(model_path, "tensorrt")
    else:
        assert detector.provider == "cuda"
        assert Detector(model_path, "auto").provider == "cuda"
    assert Detector(model_path, "cpu").provider == "cpu"


OURS = """access access.access access.keys access.rates answers connections connections.client_socket
    connections.connection connections.exceptions connections.listener connections.load_shedding
    connections.request_head connections.write_backlog errors fast_path head_method inference inference.admission
    inference.arrangement inference.batcher inference.models inference.reloading inference.served_model pipeline
    requests requests.accept requests.body requests.deadline requests.disconnect requests.form requests.interruption
    requests.parameters routes routes.admin routes.deepstack routes.detection routes.health routes.inference_protocol
    routes.models routes.page routes.tensors schemas server service settings telemetry telemetry.logs telemetry.memory
    telemetry.metrics telemetry.request_id telemetry.stages telemetry.tracing"""
THEIRS = """PIL aiolimiter annotated_doc annotated_types anyio click cv2 dotenv fastapi httptools numpy onnxruntime
    prometheus_client pydantic pydantic_core pydantic_settings python_multipart pythonjsonlogger sniffio starlette
    typing_extensions typing_inspection uvicorn uvloop watchfiles yaml"""  # uvicorn imports dotenv and yaml
SHARED = "bound_session canvas detector draw errors gpu image letterbox metadata session shapes skeleton"
BY_FASTAPI = {"opentelemetry"}  # where it is installed


def test_serving_imports_only_the_listed_modules(model_path: Path) -> None:
    program = (
        "import sys, app.__main__\n"
        "from pathlib import Path\n"
        "from model.detector import Detector\n"
        f"Detector(Path({str(model_path)!r}), 'cpu')\n"
        "print(*sys.modules)"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    imported = finished.stdout.split()
    packages = {name.partition(".")[0] for name in imported} - sys.stdlib_module_names - {"app", "model"}
    allowed = {*THEIRS.split(), *BY_FASTAPI, "cython_runtime"}
    assert {name for name in packages if not name.startswith("_")} - allowed == set()  # no torch, no matplotlib ...
    for package, modules in (("app", OURS), ("model", SHARED)):
        expected = {package, *(f"{package}.{module}" for module in modules.split())}
        assert {name for name in imported if name.partition(".")[0] == package} - {"app.__main__"} == expected


def test_onnx_runtime_telemetry_leaves_no_files_in_the_home_directory(model_path: Path, tmp_path: Path) -> None:
    program = (
        f"from pathlib import Path; from model.detector import Detector; Detector(Path({str(model_path)!r}), 'cpu')"
    )
    environment = {name: value for name, value in os.environ.items() if name not in ("ORT_DISABLE_TELEMETRY", "CI")}
    subprocess.run([sys.executable, "-c", program], env=environment | {"HOME": str(tmp_path)}, check=True)
    assert list(tmp_path.iterdir()) == []


def test_threads_do_not_spin_after_inference(model_path: Path) -> None:
    detector = Detector(model_path, "cpu", threads=4)
    canvas = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    used = []
    for _ in range(3):  # the minimum excludes other work of this process
        detector.infer([canvas])
        before = time.process_time()
        time.sleep(0.2)
        used.append(time.process_time() - before)
    assert min(used) < 0.02
