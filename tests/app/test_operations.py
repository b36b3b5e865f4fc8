import asyncio
import shutil
import subprocess
from pathlib import Path

import pytest

from app import __version__
from model.canvas import Canvases
from model.detector import Detections, Detector
from tests.app.client import Client, Serve
from tests.app.colours import PHOTO_PNG
from tests.app.detectors import HeldDetector

pytestmark = pytest.mark.anyio


async def test_server_is_live_before_it_is_ready(serve: Serve, model_path: Path) -> None:
    detector = HeldDetector(model_path)
    detector.gate.clear()
    async with serve(detector) as client:
        assert (await client.get("/health/live")).json() == {"status": "live"}
        unready = await client.get("/health/ready")
        assert (unready.status_code, unready.json()["type"]) == (503, "/docs#not-ready")
        assert await client.sample("centernet_model_ready", model="colours") == 0
        early = asyncio.create_task(client.detect())
        await client.until("centernet_queue_depth", 1)
        detector.gate.set()
        assert (await early).status_code == 200
        assert (await client.get("/health/ready")).json() == {"status": "ready"}
        assert await client.sample("centernet_model_ready", model="colours") == 1


class FailingDetector(Detector):
    def infer(self, canvases: Canvases) -> list[Detections]:
        raise RuntimeError("no memory")


async def test_liveness_fails_if_the_warm_up_fails(serve: Serve, model_path: Path) -> None:
    async with serve(FailingDetector(model_path, "cpu", 1)) as client:
        await client.until_status("/health/live", 503)
        assert (await client.get("/health/ready")).status_code == 503
        assert (await client.detect()).status_code == 503


async def test_models_are_described(client: Client) -> None:
    await client.detect()  # returns after the warm-up
    assert (await client.get("/models")).json() == {
        "models": [
            {
                "name": "colours",
                "provider": "cpu",
                "precision": "fp32",
                "input": {"width": 96, "height": 64},
                "shapes": [{"width": 96, "height": 64}],
                "dataset": "rectangles",
                "ap": 12.5,
                "ap50": None,
                "keypoint_ap": None,
                "threshold": 0.3,
                "max_detections": 3,
                "git_commit": "0" * 40,
                "labels": [
                    {"label": "red", "label_id": 10},
                    {"label": "green", "label_id": 20},
                    {"label": "blue", "label_id": 30},
                ],
                "skeleton": {"joints": [], "edges": []},
                "arrangement": {"instances": 1, "threads": 1, "max_batch": 8, "images_per_second": None},
            }
        ],
        "refused": [],
    }


async def test_metrics_count_requests_and_detections(client: Client) -> None:
    for _ in range(3):
        await client.detect()
    await client.detect(b"hello")
    await client.get("/made/up/path")
    await client.request("BREW", "/detect")
    assert await client.sample("centernet_requests_total", route="/detect", method="POST", status="200") == 3
    assert await client.sample("centernet_requests_total", route="/detect", method="POST", status="415") == 1
    assert await client.sample("centernet_requests_total", route="unmatched", method="GET", status="404") == 1
    assert await client.sample("centernet_requests_total", method="other", status="405") == 1
    assert await client.sample("centernet_rejections_total", reason="unknown-format") == 1
    assert 'centernet_rejections_total{reason="overloaded"} 0.0' in (await client.get("/metrics")).text
    assert await client.sample("centernet_request_seconds_count", route="/detect") >= 4
    assert await client.sample("centernet_detections_total", label="red") == 3
    assert await client.sample("centernet_detections_total", label="blue") == 0
    for stage in ("read", "decode", "queue", "inference", "encode"):
        assert await client.sample("centernet_stage_seconds_count", stage=stage) == 3
    assert await client.sample("centernet_batch_size_count") == 3
    assert await client.sample("centernet_requests_in_flight") == 0
    assert await client.sample("centernet_queue_depth") == 0
    assert (
        await client.sample(
            "centernet_model_info", model="colours", provider="cpu", precision="fp32", version=__version__
        )
        == 1
    )
    assert await client.sample("process_resident_memory_bytes") > 0


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian's prometheus)")
async def test_metrics_pass_promtool(client: Client) -> None:
    await client.detect()
    await client.detect(b"hello")
    exposed = (await client.get("/metrics")).content
    command = ["promtool", "check", "metrics"]
    checked = await asyncio.to_thread(subprocess.run, command, input=exposed, capture_output=True)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


async def test_apps_have_separate_metrics(serve: Serve) -> None:
    async with serve() as one, serve() as other:
        await one.detect()
        assert await one.sample("centernet_batch_size_count") == 1
        assert await other.sample("centernet_batch_size_count") == 0


async def test_openapi_documents_bodies_and_refusals(client: Client) -> None:
    assert (await client.get("/docs")).status_code == 200
    document = (await client.get("/openapi.json")).json()
    assert document["info"]["version"] == __version__
    detect = document["paths"]["/detect"]["post"]
    assert {"image/*", "multipart/form-data"} <= set(detect["requestBody"]["content"])
    statuses = "200 400 401 404 406 408 413 415 422 429 500 503 504"
    assert sorted(detect["responses"]) == statuses.split()
    for status in set(detect["responses"]) - {"200"}:
        assert set(detect["responses"][status]["content"]) == {"application/problem+json"}
    limit = next(each for each in detect["parameters"] if each["name"] == "limit")["schema"]
    assert (limit["minimum"], limit["default"]) == (1, 100)


async def test_openapi_documents_the_responses_of_each_route(client: Client) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    picture = paths["/detect"]["post"]["responses"]["200"]["content"]
    assert set(picture) == {"application/json", "image/jpeg", "image/png"}
    assert set(paths["/detect/batch"]["post"]["requestBody"]["content"]) == {"multipart/form-data", "application/json"}
    for path, reason, shown in [
        ("/v1/vision/detection", "broken-image", {"success", "code", "error", "count", "predictions"}),
        ("/v1/vision/custom/{model}", "broken-image", {"success", "code", "error", "count", "predictions"}),
        ("/v2/models/{model}/infer", "broken-image", {"error"}),
    ]:
        content = paths[path]["post"]["responses"]["422"]["content"]["application/json"]
        assert set(content["examples"][reason]["value"]) == shown


async def test_concurrent_requests_are_all_answered(client: Client) -> None:
    responses = await asyncio.gather(*(client.detect(PHOTO_PNG) for _ in range(40)))
    assert {response.status_code for response in responses} == {200}
    assert await client.sample("centernet_batch_size_sum") == 40
