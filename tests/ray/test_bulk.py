"""The `bulk` command on a local Ray cluster."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.app.colours import GREEN_FOUND, PHOTO, PHOTO_PNG, RED_FOUND, encode
from tests.ray.conftest import ROOT

pytest.importorskip("ray")

import pyarrow.parquet as pq  # installed with Ray

SECONDS = 300
BROKEN = encode(PHOTO, "JPEG")[:-400]
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(ray_environment: Mapping[str, str], model_path: Path) -> Iterator[Start]:
    """Returns a function that starts `python -m app COMMAND …`."""
    environment = ray_environment | {"CENTERNET_MODEL": str(model_path), "CENTERNET_PROVIDER": "cpu"}
    started: list[subprocess.Popen[str]] = []

    def call(*arguments: str | Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "app", *map(str, arguments)]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True))
        return started[-1]

    yield call
    for process in started:
        process.kill()
        process.communicate()


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    output, errors = process.communicate(timeout=SECONDS)
    return process.returncode, output, errors


def read(found: Path) -> list[dict[str, Any]]:
    return sorted(pq.read_table(found).to_pylist(), key=lambda row: str(row["file"]))


def make_photos(folder: Path, count: int) -> None:
    (folder / "deep").mkdir(parents=True)
    for number in range(count):
        (folder / "deep" / f"{number:03}.png").write_bytes(PHOTO_PNG)


def test_two_actors_give_the_results_of_the_detect_command(start: Start, tmp_path: Path) -> None:
    photos, found = tmp_path / "photos", tmp_path / "found"
    make_photos(photos, 40)
    (photos / "broken.jpg").write_bytes(BROKEN)
    (photos / "empty.jpg").touch()
    (photos / "notes.txt").write_text("no photo")
    (photos / ".hidden.jpg").write_bytes(BROKEN)
    status, output, errors = finish(
        start("bulk", photos, found, "--actors", "2", "--cpus", "2", "--photos-per-file", "16")
    )
    assert status == 1, errors
    assert "42 photos, 0 of them done" in errors and f"42 photos in {found}, 2 of them with a problem" in errors
    rows = read(found)
    assert len(list(found.glob("*.parquet"))) > 1

    status, output, _ = finish(start("detect", photos))
    lines = sorted((json.loads(line) for line in output.splitlines()), key=lambda line: str(line["file"]))
    assert status == 1 and [row["file"] for row in rows] == [line["file"] for line in lines]
    for row, line in zip(rows, lines, strict=True):
        if "detections" in line:
            assert (row["model"], row["problem"], row["detail"]) == (line["model"], None, None)
            assert {"width": row["width"], "height": row["height"]} == line["image"]
            assert row["detections"] == [pytest.approx(flatten(each)) for each in line["detections"]]
        else:
            assert (f"/docs#{row['problem']}", row["detail"]) == (line["type"], line["detail"])
            assert row["detections"] is row["width"] is row["height"] is None
    assert rows[1]["detections"] == [pytest.approx(flatten(each)) for each in (RED_FOUND, GREEN_FOUND)]

    before = sorted(found.iterdir())
    status, _, errors = finish(start("bulk", photos, found))
    assert status == 1 and "42 photos, 42 of them done" in errors
    assert sorted(found.iterdir()) == before

    (photos / "later.png").write_bytes(PHOTO_PNG)
    options = ("--labels", "green", "--limit", "1", "--threshold", "0.5", "--gpus", "0.5")
    status, _, errors = finish(start("bulk", photos, found, *options))
    origin = "model colours, threshold 0.3, limit 100, all labels"
    assert status == 2 and f"its rows are from {origin}: use another folder" in errors

    for file in found.glob("*.parquet"):  # as earlier versions wrote them
        pq.write_table(pq.read_table(file).replace_schema_metadata(), file)
    status, _, errors = finish(start("bulk", photos / "deep" / "..", found, *options))
    assert status == 1 and "43 photos, 42 of them done" in errors
    [later] = [row for row in read(found) if row not in rows]
    assert later["file"] == str(photos / "later.png") and [each["label"] for each in later["detections"]] == ["green"]


def flatten(detection: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in detection.items() if key != "box"} | detection["box"]


def test_rerun_after_a_kill_computes_the_missing_photos(start: Start, tmp_path: Path) -> None:
    photos, found = tmp_path / "photos", tmp_path / "found"
    make_photos(photos, 400)
    options = ("--actors", "1", "--photos-per-file", "8")
    killed = start("bulk", photos, found, *options)
    deadline = time.monotonic() + SECONDS
    while not any(found.glob("*.parquet")):
        assert killed.poll() is None and time.monotonic() < deadline, "no file was written"
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    whole = next(found.glob("*.parquet")).read_bytes()
    (found / "cut-short.parquet").write_bytes(whole[: len(whole) // 2])  # as a kill leaves a file that is being written

    status, _, errors = finish(start("bulk", photos, found, *options))
    assert status == 0, errors
    done = int(errors.partition(" of them done")[0].rpartition(" ")[2])
    assert 0 < done < 400
    assert [row["file"] for row in read(found)] == sorted(str(photo) for photo in photos.glob("deep/*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("photos", "found", "--actors", "99"),
            "there is room for 4 actors with 1 CPUs and 0 GPUs each: lower --actors",
        ),
        (
            ("photos", "found", "--actors", "4", "--gpus", "0.5"),
            "there is room for 3 actors with 1 CPUs and 0.5 GPUs each: lower --actors",
        ),
        (("nowhere", "found"), "no photos in this folder"),
        (("nonsense://photos", "found"), "nonsense://photos: Unrecognized filesystem"),
        (("photos", "other"), "it has no column 'file': use a separate folder"),
        (("photos", "found", "--labels", "cat"), "cat"),
    ],
)
def test_invalid_arguments_are_explained(
    start: Start, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    import pyarrow as pa

    make_photos(tmp_path / "photos", 1)
    (tmp_path / "other").mkdir()
    pq.write_table(pa.table({"name": ["x"]}), tmp_path / "other" / "some.parquet")
    places = [each if "://" in each else str(tmp_path / each) for each in arguments[:2]]
    status, _, errors = finish(start("bulk", *places, *arguments[2:]))
    assert status == 2 and message in errors
    assert errors.count("Traceback") == 0
