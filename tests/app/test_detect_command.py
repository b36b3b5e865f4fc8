import asyncio
import csv
import io
import json
import os
import pty
import resource
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from anyio.from_thread import start_blocking_portal
from numpy.typing import NDArray
from PIL import Image

from app.files.command import map_in_order, run
from app.settings import Settings
from model.canvas import Canvases
from model.detector import Detections, Detector
from tests.app.colours import (
    BLUE_FOUND,
    GREEN,
    GREEN_FOUND,
    PHOTO,
    PHOTO_PNG,
    RED,
    RED_FOUND,
    box,
    encode,
    paint,
)
from tests.app.detectors import HeldDetector
from tests.app.listener import listen_in_thread

Make = Callable[..., Settings]
Run = Callable[..., tuple[int, list[dict[str, Any]], str]]

GREEN_PNG = encode(paint(48, 32, (GREEN, (0, 0, 24, 16))))
GREEN_ALONE = GREEN_FOUND | {"box": box(0, 0, 24, 16)}
TRUNCATED = encode(PHOTO, "JPEG")[:-400]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_path: Path) -> Path:
    """An empty working directory, with the model in the environment."""
    for name, value in {"MODEL": str(model_path), "PROVIDER": "cpu", "THREADS": "1", "DECODE_THREADS": "2"}.items():
        monkeypatch.setenv(f"CENTERNET_{name}", value)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def detect(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command; returns its exit status, its lines of JSON and its standard error."""

    def call(*arguments: str | Path) -> tuple[int, list[dict[str, Any]], str]:
        status = run([str(each) for each in arguments])
        captured = capsys.readouterr()
        return status, [json.loads(line) for line in captured.out.splitlines()], captured.err

    return call


@pytest.fixture
def url(make_settings: Make, model_path: Path) -> Iterator[str]:
    with listen_in_thread(make_settings(), Detector(model_path, "cpu", 1)) as url:
        yield url


def put(path: str, data: bytes = PHOTO_PNG) -> Path:
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    return file


def write_video(path: str, frames: int, codec: str = "FFV1", width: int = 192, height: int = 128) -> Path:
    """Writes a video of 10 frames a second: frame n has a red square n * 2 pixels from the left, and noise."""
    file = Path(path)
    video = cv2.VideoWriter(str(file), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*codec), 10, (width, height))
    assert video.isOpened()
    noise = np.random.default_rng(0).integers(100, 156, (height, width, 3), np.uint8)
    for index in range(frames):
        frame = noise.copy()
        frame[32:96, 2 * index : 2 * index + 64] = RED
        video.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    video.release()
    return file


def read_video(path: Path) -> tuple[float, list[NDArray[np.uint8]]]:
    """Returns a video's frames per second, and its frames in RGB."""
    video = cv2.VideoCapture(str(path))
    frames = []
    while (taken := video.read())[0]:
        frames.append(np.asarray(cv2.cvtColor(taken[1], cv2.COLOR_BGR2RGB), np.uint8))
    return video.get(cv2.CAP_PROP_FPS), frames


def comparable(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key not in ("timings_ms", "request_id")} for line in lines]


def test_each_image_is_a_line_like_the_servers_response(detect: Run) -> None:
    status, lines, errors = detect(put("b.png"), put("a.png", GREEN_PNG))
    assert (status, errors) == (0, "")
    assert set(lines[0].pop("timings_ms")) == {"decode", "queue", "inference", "total"}
    assert lines[0] == {
        "file": "b.png",
        "model": "colours",
        "image": {"width": 192, "height": 128},
        "detections": [RED_FOUND, GREEN_FOUND],
    }
    assert (lines[1]["file"], lines[1]["detections"]) == ("a.png", [GREEN_ALONE])


def test_folders_are_searched_and_globs_are_expanded(detect: Run) -> None:
    for name in ("in/2.JPG", "in/1/a.png", "in/.hidden.png", "in/.cache/a.png", "in/1/notes.txt", "in/[1].png"):
        put(name)
    write_video("in/1/film.avi", 1)
    photos = ["in/1/a.png", "in/2.JPG", "in/[1].png"]
    for paths, files in {
        ("in",): photos,
        ("in/",): photos,
        ("in/**/*",): ["in/1/a.png", "in/1/film.avi", *photos[1:]],
        ("in/*/*.avi",): ["in/1/film.avi"],
        ("in/[1].png",): ["in/[1].png"],
        ("in/2.JPG", "in"): ["in/2.JPG", "in/1/a.png", "in/[1].png"],
        ("in/1/notes.txt",): ["in/1/notes.txt"],
    }.items():
        status, lines, _ = detect(*paths)
        assert (status, [line["file"] for line in lines]) == (0, files)


def test_threshold_limit_and_labels_filter_the_detections(detect: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    put("a.png")
    for arguments, found in {
        ("--threshold", "0"): [RED_FOUND, GREEN_FOUND, BLUE_FOUND],
        ("--threshold", "0", "--limit", "2"): [RED_FOUND, GREEN_FOUND],
        ("--threshold=0.1", "--labels", "blue,green"): [GREEN_FOUND, BLUE_FOUND],
        ("--threshold=0.1", "--labels=blue", "--labels=green"): [GREEN_FOUND, BLUE_FOUND],
    }.items():
        assert detect("a.png", *arguments)[1][0]["detections"] == found
    monkeypatch.setenv("CENTERNET_THRESHOLD", "0.7")
    assert detect("a.png")[1][0]["detections"] == [RED_FOUND]


def test_frames_have_their_number_and_time(detect: Run) -> None:
    write_video("film.avi", 7)
    _, every, _ = detect("film.avi")
    assert [(line["frame"], line["seconds"]) for line in every] == [(n, n / 10) for n in range(7)]
    assert [line["detections"][0]["box"] for line in every] == [box(2 * n, 32, 2 * n + 64, 96) for n in range(7)]
    _, third, _ = detect("film.avi", "--every", "3")
    assert comparable(third) == comparable(every)[::3]


def test_server_and_local_model_give_identical_lines(detect: Run, url: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (700, 900, 3), np.uint8)
    noise[100:300, 200:500] = RED
    put("in/1.jpg", encode(noise, "JPEG"))
    put("in/2.webp", encode(noise, "WEBP"))
    put("in/3.jpg", TRUNCATED)
    put("in/4.gif", b"hello")
    put("in/5.png")
    put("in/6.png", encode(Image.new("1", (12_000, 12_000))))
    write_video("film.avi", 20, width=481, height=323)
    arguments = ["in", "film.avi", "--threshold", "0.1", "--limit", "2"]
    here, there = detect(*arguments), detect(*arguments, "--url", url)
    assert (here[0], there[0]) == (1, 1)
    assert comparable(here[1]) == comparable(there[1])
    assert here[2] == there[2]
    assert [len(line.get("detections", [])) for line in here[1]] == [1, 1, 0, 0, 2, 0] + [1] * 20

    for line in here[1][:6]:
        content = Path(line.pop("file")).read_bytes()
        response = httpx.post(f"{url}/detect", content=content, params={"threshold": 0.1, "limit": 2})
        assert comparable([response.json()]) == comparable([line])


def test_invalid_images_do_not_stop_the_run(detect: Run) -> None:
    files = [put("cut.jpg", TRUNCATED), put("empty.png", b""), put("no.mp4", b"hello"), put("a.png", GREEN_PNG)]
    status, lines, errors = detect(*files)
    assert status == 1
    assert [(line["file"], line.get("type"), line.get("status")) for line in lines] == [
        ("cut.jpg", "/docs#broken-image", 422),
        ("empty.png", "/docs#empty-body", 400),
        ("no.mp4", "/docs#unreadable-file", 422),
        ("a.png", None, None),
    ]
    assert [line.get("request_id") for line in lines] == ["", "", "", None]
    assert lines[3]["detections"] == [GREEN_ALONE]
    assert [line.split(": ")[:3] for line in errors.splitlines()] == [
        ["centernet-detect", "cut.jpg", "The image is broken"],
        ["centernet-detect", "empty.png", "No image was sent"],
        ["centernet-detect", "no.mp4", "The file cannot be read"],
    ]


@pytest.mark.parametrize("name", ["film.avi", "film.mkv"])
def test_truncated_video_is_reported_after_its_frames(detect: Run, name: str) -> None:
    film = write_video(name, 50)
    film.write_bytes(film.read_bytes()[: film.stat().st_size // 2])
    status, lines, errors = detect(film, put("a.png", GREEN_PNG))
    assert (status, lines[-2]["type"], lines[-1]["file"]) == (1, "/docs#unreadable-file", "a.png")
    assert [line["frame"] for line in lines[:-2]] == list(range(len(lines) - 2))
    assert 10 < len(lines) < 40
    assert f"the video ends after {len(lines) - 2} of about 50 frames" in errors


@pytest.mark.parametrize(("film", "copies"), [("caf\udce9.avi", "out"), ("film.avi", "caf\udce9")])
def test_video_name_that_is_not_utf_8_is_reported(film: str, copies: str) -> None:
    write_video("new.avi", 2).rename(film)
    command = [sys.executable, "-m", "app", "detect", film, "--annotated", copies]
    finished = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert finished.returncode == 1
    assert "its name is not UTF-8: rename it" in finished.stderr


@pytest.mark.parametrize("frames", [1, 60])
def test_full_disk_is_reported_and_leaves_no_broken_video(frames: int) -> None:
    write_video("film.avi", frames)
    command = [sys.executable, "-m", "app", "detect", "film.avi", "--annotated", "out"]
    limit = (1000 * frames, 1000 * frames)  # bytes of a file, as on a disk that is full
    finished = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=environment(),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
    )
    assert finished.returncode == 1
    assert finished.stderr == "centernet-detect: out/film.avi.mp4 could not be written completely: is the disk full?\n"
    assert not list(Path("out").iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_full_output_is_reported_without_a_traceback(detect: Run) -> None:
    status, lines, errors = detect(put("a.png"), "--jsonl", "/dev/full")
    assert (status, lines, errors.count("\n")) == (1, [], 1)
    assert "No space left on device" in errors


def test_file_over_the_limit_is_not_read(detect: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CENTERNET_MAX_IMAGE_BYTES", str(len(PHOTO_PNG) - 1))
    status, lines, _ = detect(put("large.png"), put("small.png", GREEN_PNG))
    assert (status, lines[0]["type"], lines[1]["detections"]) == (1, "/docs#body-too-large", [GREEN_ALONE])


def test_image_can_be_read_from_a_pipe(detect: Run) -> None:
    os.mkfifo("pipe")
    writer = threading.Thread(target=Path("pipe").write_bytes, args=(PHOTO_PNG,))
    writer.start()
    status, [line], _ = detect("pipe")
    writer.join()
    assert (status, [each["label"] for each in line["detections"]]) == (0, ["red", "green"])
    status, _, errors = detect("pipe", "--annotated", "out")
    assert (status, "pipe is a pipe, which can be read only once" in errors) == (2, True)


def test_csv_has_a_row_for_each_object(detect: Run) -> None:
    put("a, b.png")
    write_video("film.avi", 3)
    status, lines, _ = detect("a, b.png", "film.avi", put("broken.png", b"x"), "--every=2", "--csv", "found.csv")
    assert (status, lines) == (1, [])
    assert Path("found.csv").read_text().splitlines() == [
        "file,frame,seconds,width,height,label,label_id,score,x_min,y_min,x_max,y_max",
        '"a, b.png",,,192,128,red,10,0.9,32.0,16.0,96.0,64.0',
        '"a, b.png",,,192,128,green,20,0.6,112.0,80.0,176.0,112.0',
        "film.avi,0,0.0,192,128,red,10,0.9,0.0,32.0,64.0,96.0",
        "film.avi,2,0.2,192,128,red,10,0.9,4.0,32.0,68.0,96.0",
    ]


def test_all_outputs_can_be_written_together(detect: Run, capsys: pytest.CaptureFixture[str]) -> None:
    put("a.png")
    status = run(["a.png", "--jsonl", "lines.jsonl", "--csv", "-", "--annotated", "deep/er"])
    assert status == 0
    assert [row["label"] for row in csv.DictReader(io.StringIO(capsys.readouterr().out))] == ["red", "green"]
    assert json.loads(Path("lines.jsonl").read_text())["detections"] == [RED_FOUND, GREEN_FOUND]
    assert [path.name for path in Path("deep/er").iterdir()] == ["a.png"]


def test_annotated_copies_equal_the_servers_drawings(detect: Run, url: str) -> None:
    originals = {"in/a.png": PHOTO_PNG, "in/deep/b.webp": encode(PHOTO, "WEBP", lossless=True)}
    for name, data in originals.items():
        put(name, data)
    put("in/c.jpg", encode(PHOTO, "JPEG"))
    assert detect("in", "--annotated", "here") == (0, [], "")
    assert detect("in", "--annotated", "there", "--url", url) == (0, [], "")
    drawn = httpx.post(f"{url}/detect", content=PHOTO_PNG, headers={"accept": "image/png"}).content
    copies = {str(path.relative_to("here")): path for path in Path("here").rglob("*") if path.is_file()}
    assert set(copies) == {"a.png", "deep/b.webp.png", "c.jpg"}
    assert copies["a.png"].read_bytes() == copies["deep/b.webp.png"].read_bytes() == drawn
    for name, path in copies.items():
        assert path.read_bytes() == Path("there", name).read_bytes()
    assert copies["c.jpg"].read_bytes().startswith(b"\xff\xd8\xff")
    assert Path("in/a.png").read_bytes() == PHOTO_PNG


@pytest.mark.parametrize(("every", "frames", "per_second"), [(1, 7, 10), (3, 3, 10 / 3)])
def test_annotated_copy_of_a_video_is_a_video(detect: Run, every: int, frames: int, per_second: float) -> None:
    write_video("one.avi", 7)
    write_video("two.mp4", 7, "mp4v")
    assert detect("one.avi", "two.mp4", "--annotated", "out", f"--every={every}") == (0, [], "")
    assert sorted(path.name for path in Path("out").iterdir()) == ["one.avi.mp4", "two.mp4"]
    for path in Path("out").iterdir():
        speed, copy = read_video(path)
        assert (len(copy), speed) == (frames, pytest.approx(per_second, rel=0.01))
        for index, frame in enumerate(copy):
            left = 2 * every * index
            assert frame.shape == (128, 192, 3)
            inside, tag = frame[60:80, left + 10 : left + 50], frame[17:31, left + 3 : left + 30]
            assert inside[..., 0].mean() > 200 > 100 > inside[..., 1:].mean()  # the square is still red
            assert tag[..., 0].max() > 180  # and the tag above it, in the label's own red, lies on grey


def test_annotated_copies_are_not_inputs_of_the_next_run(detect: Run) -> None:
    put("in/a.png")
    for path in ("in", "in", "in/**/*.png"):
        assert detect(path, "--annotated", "in/out") == (0, [], "")
    assert [str(path) for path in sorted(Path("in").rglob("*.png"))] == ["in/a.png", "in/out/a.png"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing.jpg"], "missing.jpg: there is no such file"),
        (["*.jpg"], "*.jpg: no photo or video matches"),
        (["empty"], "empty: no photos in this folder"),
        (["a.png", "--model", "missing.onnx"], "model: there is no file missing.onnx"),
        (["a.png", "--model", "a.png"], "a.png: it cannot be opened"),
        (["a.png", "--provider", "tpu"], "provider: "),
        (["a.png", "--threads", "0"], "threads: "),
        (["a.png", "--labels", "pink"], "unknown: 'pink'; the model knows: red, green, blue"),
        (["a.png", "--csv", "b.jpg"], "b.jpg is named like an image"),
        (["a.png", "--csv", "-", "--jsonl", "-"], "cannot both go to the same place"),
        (["a.png", "--csv", "notes", "--jsonl", "notes"], "cannot both go to the same place"),
        (["a.png", "--csv", "missing/found.csv"], "missing/found.csv"),
        (["a.png", "notes", "--csv", "notes"], "notes is one of the inputs"),
        (["a.png", "--annotated", "notes"], "notes"),
        (["a.png", "--annotated", "."], "a.png is one of the inputs"),
        (["in", "--annotated", "in"], "in/a.png is one of the inputs"),
        (["in", "--annotated", "linked"], "linked/a.png is one of the inputs"),
        (["a.png", "in/a.png", "--annotated", "out"], "out/a.png would be the copy of 2 files"),
        (["a.png", "--url", "localhost"], "localhost is not a valid address"),
    ],
)
def test_unusable_arguments_exit_with_status_2_and_change_no_files(
    detect: Run, arguments: list[str], words: str
) -> None:
    for name in ("a.png", "in/a.png", "notes"):
        put(name)
    Path("empty").mkdir()
    Path("linked").mkdir()
    Path("linked/a.png").hardlink_to("in/a.png")
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    status, lines, errors = detect(*arguments)
    assert (status, lines) == (2, [])
    assert errors.startswith("centernet-detect: ")
    assert words in errors
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["a.png", "--threshold", "1.5"],
        ["a.png", "--threshold", "nan"],
        ["a.png", "--limit", "0"],
        ["a.png", "--every", "none"],
        ["a.png", "--url", "http://127.0.0.1:1", "--threads", "2"],
    ],
)
def test_invalid_arguments_exit_with_status_2(detect: Run, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        detect(*arguments)
    assert caught.value.code == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--labels", "pink"], "unknown: 'pink'"),
        (["--model", "other"], "there is no model 'other'; there is 'colours'"),
    ],
)
def test_arguments_refused_by_the_server_exit_with_status_2(
    detect: Run, url: str, arguments: list[str], words: str
) -> None:
    status, lines, errors = detect(put("a.png"), put("b.png"), "--url", url, *arguments)
    assert (status, lines) == (2, [])
    assert words in errors


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("detection", "words"),
    [(None, "no response from http://"), (RED_FOUND, "the server's model colours was replaced in the meantime")],
)
async def test_run_ends_when_the_server_disconnects_or_its_model_changes(
    detect: Run, monkeypatch: pytest.MonkeyPatch, detection: dict[str, Any] | None, words: str
) -> None:
    """The server lists no models, and then closes an image's connection or responds with a detection."""
    answer = {
        "model": "colours",
        "image": {"width": 192, "height": 128},
        "detections": [detection],
        "timings_ms": {"decode": 1, "queue": 1, "inference": 1, "total": 1},
    }
    heads = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        body = {"models": [], "refused": []} if b"/models" in heads[-1] else answer if detection else None
        if body is not None:
            text = json.dumps(body)
            writer.write(f"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode())
        writer.close()

    monkeypatch.setenv("CENTERNET_API_KEY", "secret")
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        arguments = [put("a.png"), put("b.png"), "--url", url, "--annotated", "out", "--jsonl", "-"]
        status, lines, errors = await asyncio.to_thread(detect, *arguments)
    assert (status, lines) == (1, [])
    assert words in errors
    assert all(b"x-api-key: secret\r\n" in head.lower() for head in heads)


def test_no_more_images_are_in_flight_than_the_queue_takes(detect: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CENTERNET_MAX_QUEUE", "1")
    status, lines, _ = detect(*[put(f"{index}.png") for index in range(5)])
    assert (status, [len(line["detections"]) for line in lines]) == (0, [2] * 5)


def test_map_in_order_limits_read_ahead_and_keeps_the_order() -> None:
    ended = [asyncio.Event() for _ in range(20)]
    given = 0

    def read() -> Iterator[int]:
        for index in range(20):
            assert index - given < 3
            yield index

    async def work(index: int) -> int:
        if index % 3 == 0:  # finishes after the next
            await ended[index + 1].wait()
        ended[index].set()
        return index

    with start_blocking_portal() as portal:
        for result in map_in_order(portal, work, read(), 3):
            assert result == given
            given += 1
    assert given == 20


class StallingDetector(HeldDetector):
    """Blocks after more than 20 images, until its gate is set."""

    def infer(self, canvases: Canvases, threads: int | None = None) -> list[Detections]:
        found = super().infer(canvases, threads)
        if sum(self.batches) > 20:
            self.gate.clear()
        return found


@pytest.fixture
def default_sigint() -> Iterator[None]:
    """Child processes handle SIGINT even if this process was started in the background and ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("default_sigint")
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_leaves_complete_files(make_settings: Make, model_path: Path, stop: signal.Signals) -> None:
    write_video("film.avi", 64)
    detector = StallingDetector(model_path)
    with listen_in_thread(make_settings(), detector) as url:
        command = [sys.executable, "-m", "app", "detect", "film.avi", "--url", url]
        outputs = ["--jsonl", "-", "--csv", "found.csv", "--annotated", "out"]
        with subprocess.Popen(
            command + outputs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            first = [process.stdout.readline() for _ in range(5)]
            process.send_signal(stop)
            rest, errors = process.stdout.readlines(), process.stderr.read()
        detector.gate.set()
    assert (process.returncode, errors) == (128 + stop, "")
    lines = [json.loads(line)["frame"] for line in first + rest]
    _, *rows = csv.reader(Path("found.csv").read_text().splitlines())
    _, copied = read_video(Path("out/film.avi.mp4"))
    assert lines == list(range(len(lines)))
    assert [int(row[1]) for row in rows] == list(range(len(rows)))
    # the signal may arrive when the last frame has been written to some of the outputs only
    assert 5 <= len(lines) <= len(rows) <= len(copied) <= len(lines) + 1 < 64


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}


def test_closed_output_pipe_ends_the_run_without_a_message() -> None:
    write_video("film.avi", 400)  # more lines than a pipe holds
    command = [sys.executable, "-m", "app", "detect", "film.avi"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        json.loads(process.stdout.readline())
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == 1


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_shown_only_on_a_terminal(terminal: bool) -> None:
    write_video("film.avi", 5)
    command = [sys.executable, "-m", "app", "detect", "film.avi", str(put("broken.png", b"x")), "--every=2"]
    reading, writing = pty.openpty() if terminal else os.pipe()
    if terminal:
        termios.tcsetwinsize(writing, (24, 100))
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=writing, env=environment())
    shown = os.read(reading, 100_000).decode()
    os.close(reading)
    os.close(writing)
    assert done.returncode == 1
    assert "broken.png: This is not an image" in shown
    assert ("4/4" in shown) == terminal
    assert len(done.stdout.splitlines()) == 4


def test_only_url_needs_the_client_extra() -> None:
    put("a.png")
    script = (
        "import sys; sys.modules['httpx'] = sys.modules['tqdm'] = None\n"
        "from app.files.command import main; sys.exit(main(sys.argv[1:]))"
    )
    for arguments, status, words in [
        (["a.png", "missing.png"], 2, "missing.png: there is no such file"),
        (["a.png"], 0, ""),
        (["a.png", "--url", "http://127.0.0.1:1"], 2, "pip install 'centernet-service[client]'"),
    ]:
        command = [sys.executable, "-c", script, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=environment())
        assert (done.returncode, words in done.stderr, "Traceback" in done.stderr) == (status, True, False)
        assert (done.stdout != "") == (status == 0)
