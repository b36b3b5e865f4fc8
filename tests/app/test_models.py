import asyncio
import contextlib
import errno
import itertools
import os
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NoReturn

import httpx
import pytest

from app.inference import reloading
from app.inference.arrangement import batch_sizes
from app.inference.models import Models, open_detectors
from app.inference.served_model import Computed, ServedModel
from app.server import create_app
from app.settings import Settings
from app.telemetry.metrics import Metrics
from model.canvas import Canvases
from model.detector import Detections, Detector
from model.image import BrokenImage, UnknownFormat
from model.metadata import InvalidModel
from tests.app.client import Client, until
from tests.app.colours import GREEN, PHOTO_PNG, RED, describe, encode, paint, save_model, save_rectangular_model
from tests.app.detectors import HeldDetector

pytestmark = pytest.mark.anyio


def put(folder: Path, file: str, name: str, **facts: Any) -> None:
    """Writes a model beside its place, and moves it there atomically, as operators should."""
    new = save_model(folder / f"{file}.new", describe(name=name, **facts).to_properties())
    new.replace(folder / file)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    put(tmp_path, "a.onnx", "first")
    put(tmp_path, "b.onnx", "second")
    return tmp_path


@pytest.fixture
def settings(folder: Path) -> Settings:
    return Settings(model=(folder,), provider="cpu", threads=1, decode_threads=2)


def load(settings: Settings) -> list[Detector]:
    return [Detector(path, "cpu", 1) for path in settings.find_models()]


@pytest.fixture
async def client(settings: Settings) -> AsyncIterator[Client]:
    app = create_app(settings, *load(settings))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with app.router.lifespan_context(app), Client(transport=transport, base_url="http://server") as client:
        yield client


async def names(client: Client) -> list[str]:
    return [model["name"] for model in (await client.get("/models")).json()["models"]]


async def test_requests_select_a_model_by_name(client: Client) -> None:
    assert await names(client) == ["first", "second"]
    assert (await client.detect()).json()["model"] == "first"
    assert (await client.detect(model="second")).json()["model"] == "second"
    assert (await client.post("/v1/vision/custom/second", files={"image": PHOTO_PNG})).json()["count"] == 2
    assert (await client.get("/models/second")).json()["name"] == "second"
    assert (await client.get("/v2/models/second/ready")).json() == {"name": "second", "ready": True}
    assert (await client.post("/v1/vision/custom/list")).json()["models"] == ["first", "second"]
    unknown = await client.detect(model="third")
    assert (unknown.status_code, unknown.json()["type"]) == (404, "/docs#unknown-model")
    assert unknown.json()["detail"] == "there is no model 'third'; there is 'first', 'second'"
    assert await client.sample("centernet_batch_size_count", model="second") == 2


async def test_reload_adds_replaces_and_removes_models(client: Client, folder: Path) -> None:
    put(folder, "a.onnx", "better")
    (folder / "b.onnx").unlink()
    put(folder, "c.onnx", "third")
    answer = await client.post("/models/reload")
    assert [model["name"] for model in answer.json()["models"]] == ["better", "third"]
    assert answer.json()["refused"] == []
    assert (await client.detect()).json()["model"] == "better"
    assert (await client.detect(model="third")).status_code == 200
    assert (await client.detect(model="second")).status_code == 404
    assert await client.sample("centernet_model_info", model="third") == 1
    assert await client.sample("centernet_model_info", model="second") == 0
    assert (await client.get("/health/ready")).status_code == 200


async def test_replaced_file_with_the_same_time_is_loaded(client: Client, folder: Path) -> None:
    def copy(name: str) -> None:
        model = save_model(folder / "new", describe(name=name).to_properties())
        os.utime(model, ns=(0, 0))
        model.replace(folder / "a.onnx")

    for name in ("north", "south"):  # of one size
        copy(name)
        await client.post("/models/reload")
        assert await names(client) == [name, "second"]
    content = save_model(folder / "new", describe(name="southwest").to_properties()).read_bytes()
    (folder / "a.onnx").write_bytes(content)  # the same file, of another size
    os.utime(folder / "a.onnx", ns=(0, 0))
    await client.post("/models/reload")
    assert await names(client) == ["southwest", "second"]


async def test_invalid_file_is_refused_and_the_old_model_keeps_serving(client: Client, folder: Path) -> None:
    (folder / "a.onnx").write_bytes(b"half a file")
    refused = (await client.post("/models/reload")).json()["refused"]
    assert await client.sample("centernet_models_refused") == 1
    assert [each["file"] for each in refused] == ["a.onnx"]
    assert "cannot be opened" in refused[0]["reason"]
    assert await names(client) == ["first", "second"]
    assert (await client.detect()).json()["model"] == "first"
    put(folder, "a.onnx", "first", dataset="repaired")
    assert (await client.post("/models/reload")).json()["refused"] == []
    assert (await client.get("/models/first")).json()["dataset"] == "repaired"


async def test_second_file_with_the_same_model_name_is_refused(
    client: Client, folder: Path, settings: Settings
) -> None:
    shutil.copy(folder / "a.onnx", folder / "copy.onnx")
    refused = (await client.post("/models/reload")).json()["refused"]
    assert [each["file"] for each in refused] == ["copy.onnx"]
    assert "export it under another name" in refused[0]["reason"]
    with pytest.raises(InvalidModel, match="under another name"):
        Models(load(settings), settings, Metrics())


async def test_renamed_file_keeps_serving(client: Client, folder: Path) -> None:
    (folder / "a.onnx").rename(folder / "z.onnx")
    assert (await client.post("/models/reload")).json()["refused"] == []
    assert await names(client) == ["second", "first"]
    assert (await client.detect(model="first")).status_code == 200
    assert await client.sample("centernet_model_info", model="first") == 1


async def test_files_may_swap_names(client: Client, folder: Path) -> None:
    for renamed in (["second", "third"], ["third", "second"]):
        put(folder, "a.onnx", renamed[0])
        put(folder, "b.onnx", renamed[1])
        assert (await client.post("/models/reload")).json()["refused"] == []
        assert await names(client) == renamed
        for name in renamed:
            assert (await client.detect(model=name)).status_code == 200
            assert await client.sample("centernet_model_ready", model=name) == 1
    assert await client.sample("centernet_model_info", model="first") == 0


async def test_served_model_keeps_its_name(client: Client, folder: Path) -> None:
    put(folder, "a.onnx", "second")  # as b.onnx, which has not changed, is
    put(folder, "c.onnx", "first")  # as a.onnx is after all
    refused = (await client.post("/models/reload")).json()["refused"]
    assert [each["file"] for each in refused] == ["a.onnx", "c.onnx"]
    assert await names(client) == ["first", "second"]
    assert (await client.detect()).json()["model"] == "first"


async def test_models_may_be_reloaded_while_they_are_iterated_over(settings: Settings, folder: Path) -> None:
    models = Models(load(settings), settings, Metrics())
    iterated = iter(models)
    assert next(iterated).name == "first"
    put(folder, "c.onnx", "third")
    await models.reload()
    assert [model.name for model in iterated] == ["second"]
    await models.stop(30)


async def test_server_keeps_serving_if_all_model_files_are_removed(client: Client, folder: Path) -> None:
    (folder / "a.onnx").unlink()
    (folder / "b.onnx").unlink()
    await client.post("/models/reload")
    assert (await client.detect()).status_code == 200


async def test_replacing_a_model_under_load_drops_no_requests(client: Client, folder: Path) -> None:
    stop = False

    async def send_requests() -> list[tuple[int, str]]:
        answers = []
        while not stop:
            response = await client.detect()
            answers.append((response.status_code, response.json()["model"]))
        return answers

    clients = [asyncio.create_task(send_requests()) for _ in range(8)]
    for generation in range(5):
        put(folder, "a.onnx", f"generation-{generation}")
        await client.post("/models/reload")
        assert (await client.detect()).json()["model"] == f"generation-{generation}"
    stop = True
    answers = [answer for each in await asyncio.gather(*clients) for answer in each]
    assert {status for status, _ in answers} == {200}
    assert len({name for _, name in answers}) >= 3


async def test_a_removed_model_finishes_its_requests(folder: Path, settings: Settings) -> None:
    held = HeldDetector(folder / "a.onnx")
    app = create_app(settings, held, Detector(folder / "b.onnx", "cpu", 1))
    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app), Client(transport=transport, base_url="http://server") as client:
        await client.detect()
        held.gate.clear()
        request = asyncio.create_task(client.detect())
        await client.until("centernet_requests_in_flight", 1)
        (folder / "a.onnx").unlink()
        await client.post("/models/reload")
        assert await names(client) == ["second"]
        assert not request.done()
        held.gate.set()
        assert (await request).json()["model"] == "first"


async def test_sighup_reloads_the_models(client: Client, folder: Path) -> None:
    put(folder, "a.onnx", "signalled")
    os.kill(os.getpid(), signal.SIGHUP)

    async def are_reloaded() -> bool:
        return await names(client) == ["signalled", "second"]

    await until(are_reloaded)


@contextlib.asynccontextmanager
async def watching(model: Path, *others: Path) -> AsyncIterator[Client]:
    settings = Settings(model=(model, *others), provider="cpu", threads=1, decode_threads=1, watch=True)
    app = create_app(settings, *open_detectors(settings))
    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app), Client(transport=transport, base_url="http://server") as client:
        yield client


@pytest.fixture
def fast_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reloading, "_WATCH_SECONDS", 0.02)


@pytest.mark.usefixtures("fast_watch")
async def test_changes_in_a_watched_folder_reload_the_models(folder: Path) -> None:
    async with watching(folder) as client:
        put(folder, "a.onnx", "changed")

        async def are_reloaded() -> bool:
            return await names(client) == ["changed", "second"]

        await until(are_reloaded)


@pytest.mark.usefixtures("fast_watch")
async def test_watch_loads_a_file_once_it_no_longer_grows(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    complete = save_model(folder / "third", describe(name="third").to_properties()).read_bytes()
    sizes = iter([100, 200, 300, len(complete)])
    read = Models.read_signatures

    def read_and_upload(models: Models) -> dict[Path, tuple[int, ...]]:
        signatures = read(models)
        for size in itertools.islice(sizes, 1):
            (folder / "c.onnx").write_bytes(complete[:size])
        return signatures

    monkeypatch.setattr(Models, "read_signatures", read_and_upload)
    async with watching(folder) as client:

        async def is_loaded() -> bool:
            return await names(client) == ["first", "second", "third"]

        await until(is_loaded)
    assert "not loaded" not in caplog.text


@pytest.mark.usefixtures("fast_watch")
async def test_watch_outlasts_files_that_cannot_be_listed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> NoReturn:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))

    async with watching(folder) as client:
        with monkeypatch.context() as patch:
            patch.setattr(os, "listdir", fail)
            patch.setattr(os, "scandir", fail)
            await until(lambda: f"cannot be listed: [Errno 13] Permission denied: '{folder}'" in caplog.text)
            with pytest.raises(ValueError, match=f"model: {folder} cannot be listed: Permission denied"):
                Settings(model=(folder,))
            [refused] = (await client.post("/models/reload")).json()["refused"]
            assert refused["reason"] == f"{folder} cannot be listed: Permission denied"

        async def is_mended() -> bool:
            return (await client.get("/models")).json()["refused"] == []

        await until(is_mended)
        put(folder, "a.onnx", "changed")

        async def are_reloaded() -> bool:
            return await names(client) == ["changed", "second"]

        await until(are_reloaded)


@pytest.mark.usefixtures("fast_watch")
async def test_watch_follows_a_symbolic_link_to_another_folder(folder: Path) -> None:
    release = folder / "release"
    release.mkdir()
    put(release, "a.onnx", "third")
    link = folder / "current"
    link.symlink_to(folder, target_is_directory=True)
    async with watching(link) as client:
        new = folder / "new"
        new.symlink_to(release, target_is_directory=True)
        new.replace(link)

        async def are_reloaded() -> bool:
            return await names(client) == ["third"]

        await until(are_reloaded)


@pytest.mark.usefixtures("fast_watch")
async def test_faulty_files_do_not_stop_a_watching_server_from_starting(folder: Path) -> None:
    (folder / "faulty.onnx").write_bytes((folder / "a.onnx").read_bytes()[:1000])
    shutil.copy(folder / "a.onnx", folder / "copy.onnx")
    async with watching(folder) as client:
        assert await names(client) == ["first", "second"]

        async def are_refused() -> bool:
            refused = (await client.get("/models")).json()["refused"]
            return [each["file"] for each in refused] == ["copy.onnx", "faulty.onnx"]

        await until(are_refused)
    (folder / "a.onnx").unlink()
    (folder / "b.onnx").unlink()
    (folder / "copy.onnx").unlink()
    with pytest.raises(InvalidModel, match="cannot be opened"):
        async with watching(folder):
            pass


class FlakyDetector(Detector):
    """Raises while `broken`."""

    broken = False

    def infer(self, canvases: Canvases, threads: int | None = None) -> list[Detections]:
        if self.broken:
            raise RuntimeError("out of memory")
        return super().infer(canvases, threads)


async def test_readiness_follows_repeated_failures_and_recovery(folder: Path, settings: Settings) -> None:
    detector = FlakyDetector(folder / "a.onnx", "cpu", 1)
    app = create_app(settings, detector)
    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app), Client(transport=transport, base_url="http://server") as client:
        assert (await client.detect()).status_code == 200
        detector.broken = True
        for _ in range(2):
            assert (await client.detect()).status_code == 500
            assert (await client.get("/health/ready")).status_code == 200
        assert (await client.detect()).status_code == 500
        unready = await client.get("/health/ready")
        assert (unready.status_code, unready.json()["type"]) == (503, "/docs#not-ready")
        assert (await client.get("/health/live")).status_code == 200
        detector.broken = False
        assert (await client.get("/health/ready")).status_code == 200
        assert (await client.detect()).status_code == 200


async def test_request_past_its_deadline_is_not_computed(folder: Path, settings: Settings) -> None:
    held = HeldDetector(folder / "a.onnx")
    app = create_app(settings, held)
    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app), Client(transport=transport, base_url="http://server") as client:
        await client.detect()
        held.batches.clear()
        held.gate.clear()
        first = asyncio.create_task(client.detect())
        await until(lambda: held.batches)
        for late in (
            await client.detect(timeout=0.01),
            await client.post("/detect", content=PHOTO_PNG, headers={"X-Request-Timeout": "0.01"}),
        ):
            assert (late.status_code, late.json()["type"]) == (504, "/docs#deadline-exceeded")
            assert late.json()["detail"] == "the response was not ready within 0.01 s"
        held.gate.set()
        assert (await first).status_code == 200
        assert (await client.detect()).status_code == 200
        assert held.batches == [1, 1]
        assert await client.sample("centernet_rejections_total", reason="deadline-exceeded") == 2


async def test_liveness_fails_when_the_model_hangs(folder: Path) -> None:
    settings = Settings(model=(folder,), provider="cpu", threads=1, decode_threads=1, inference_timeout_seconds=0.01)
    held = HeldDetector(folder / "a.onnx")
    app = create_app(settings, held)
    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app), Client(transport=transport, base_url="http://server") as client:
        await client.until_status("/health/ready", 200)
        held.gate.clear()
        for _ in range(3):
            assert (await client.detect()).status_code == 500
        assert (await client.get("/health/live")).status_code == 503
        held.gate.set()


async def test_hung_model_does_not_block_shutdown(folder: Path) -> None:
    settings = Settings(model=(folder,), provider="cpu", threads=1, decode_threads=1, stop_timeout_seconds=0.05)
    held = HeldDetector(folder / "a.onnx")
    app = create_app(settings, held)
    transport = httpx.ASGITransport(app)
    client = Client(transport=transport, base_url="http://server")
    async with asyncio.timeout(30), client, app.router.lifespan_context(app):
        await client.detect()
        held.gate.clear()
        assert (await client.detect(timeout=0.05)).status_code == 504
    assert held.gate.is_set()  # by `stop`, which ends the inference


async def test_a_stop_ends_the_warm_up(folder: Path) -> None:
    settings = Settings(model=(folder,), provider="cpu", threads=1, decode_threads=1, stop_timeout_seconds=0.05)
    held = HeldDetector(folder / "a.onnx")
    held.gate.clear()
    app = create_app(settings, held)
    async with asyncio.timeout(30), app.router.lifespan_context(app):
        await until(lambda: held.batches)
    assert held.gate.is_set()


async def test_a_cancelled_reload_ends_its_warm_up_and_can_be_repeated(
    folder: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = Models(load(settings), settings, Metrics())
    put(folder, "a.onnx", "better")
    held = HeldDetector(folder / "a.onnx")
    held.gate.clear()
    with monkeypatch.context() as patch:
        patch.setattr("app.inference.models.open_detector", lambda *_: held)
        reload = asyncio.create_task(models.reload())
        await until(lambda: held.batches)
        reload.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reload
    assert held.gate.is_set()
    assert [model.name for model in models] == ["first", "second"]
    await models.reload()
    assert [model.name for model in models] == ["better", "second"]
    await models.stop(30)


async def test_order_of_the_models_is_kept_during_a_reload(client: Client, folder: Path) -> None:
    for generation in range(3):
        put(folder, "a.onnx", "first", dataset=f"generation-{generation}")
        put(folder, "b.onnx", "second", dataset=f"generation-{generation}")
        reload = asyncio.create_task(client.post("/models/reload"))
        while not reload.done():
            assert (await client.detect()).json()["model"] == "first"
        assert await names(client) == ["first", "second"]
        assert await client.sample("centernet_model_info", model="first") == 1


def test_warm_up_on_a_gpu_runs_every_batch_size(folder: Path, settings: Settings) -> None:
    assert (batch_sizes(8), batch_sizes(6)) == ([1, 2, 4, 8], [1, 2, 4, 6])
    detector = HeldDetector(folder / "a.onnx")
    detector.provider = "cuda"
    model = ServedModel(detector, settings.model_copy(update={"max_batch": 6, "instances": 1}), Metrics())
    model.warm_up()
    model.warm_up()
    assert detector.batches == [1, 2, 4, 6]


@pytest.fixture
def rectangular(tmp_path: Path) -> HeldDetector:
    return HeldDetector(save_rectangular_model(tmp_path / "rectangles.onnx"))


def test_a_worker_that_prepares_images_groups_them_by_shape(rectangular: HeldDetector, settings: Settings) -> None:
    metrics = Metrics()
    model = ServedModel(rectangular, settings.model_copy(update={"max_batch": 4, "instances": 1}), metrics)
    model.warm_up()
    photos = [paint(*size, (colour, (0, 0, 9, 9))) for size, colour in (((96, 64), RED), ((64, 96), GREEN))]
    computed = model._compute([photos[0], photos[1], b"nothing", photos[0]], False)
    assert [type(each) for each in computed] == [Computed, Computed, UnknownFormat, Computed]
    assert [each.detections.labels.tolist() for each in computed if isinstance(each, Computed)] == [[0], [1], [0]]
    assert metrics.registry.get_sample_value("centernet_batch_size_count", {"model": "colours"}) == 2
    assert metrics.registry.get_sample_value("centernet_batch_size_sum", {"model": "colours"}) == 3


async def test_images_of_one_shape_share_a_batch(rectangular: HeldDetector) -> None:
    settings = Settings(model=(rectangular.path,), provider="cpu", threads=2, instances=1, max_batch=4)
    app = create_app(settings, rectangular)
    wide, high = encode(paint(96, 64)), encode(paint(64, 96))
    async with (
        app.router.lifespan_context(app),
        Client(transport=httpx.ASGITransport(app), base_url="http://server") as client,
    ):
        await client.post("/detect", content=wide)
        rectangular.shapes_seen.clear()
        rectangular.gate.clear()
        async with asyncio.TaskGroup() as group:
            group.create_task(client.post("/detect", content=wide))
            await until(lambda: rectangular.shapes_seen)
            for queued, photo in enumerate((high, wide, high, wide, high), start=1):
                group.create_task(client.post("/detect", content=photo))
                await client.until("centernet_queue_depth", queued, model="colours")
            rectangular.gate.set()
    assert rectangular.shapes_seen == [[(64, 96)], [(96, 64)] * 3, [(64, 96)] * 2]


def test_an_image_alone_is_computed_with_all_threads(folder: Path, settings: Settings) -> None:
    detector = HeldDetector(folder / "a.onnx")
    arrangement = {"threads": 2, "instances": 2, "max_batch": 1}
    model = ServedModel(detector, settings.model_copy(update=arrangement), Metrics())
    model.warm_up()
    detector.threads_seen.clear()
    model._compute([PHOTO_PNG], True)
    model._compute([PHOTO_PNG], False)
    assert detector.threads_seen == [None, 1]


def test_a_broken_image_does_not_fail_its_batch(folder: Path, settings: Settings) -> None:
    model = ServedModel(HeldDetector(folder / "a.onnx"), settings, Metrics())
    model.warm_up()
    first, broken, last = model._compute([PHOTO_PNG, PHOTO_PNG[:-40], PHOTO_PNG], False)
    assert isinstance(first, Computed) and isinstance(last, Computed) and isinstance(broken, BrokenImage)
    assert first.detections.labels.tolist() == last.detections.labels.tolist() == [0, 1, 2]
    assert [type(each) for each in model._compute([b"nothing"], True)] == [UnknownFormat]


async def test_the_arrangement_is_reported(client: Client) -> None:
    await client.detect()
    [first, _] = (await client.get("/models")).json()["models"]
    arrangement = first["arrangement"]
    assert (arrangement["instances"], arrangement["threads"]) == (1, 1)
    facts = {"provider": "cpu", "instances": "1", "threads": "1", "max_batch": str(arrangement["max_batch"])}
    assert await client.sample("centernet_model_info", model="first", **facts) == 1
