"""Fuzzes a server with damaged images and request bodies: `make fuzz`.

Exits with 1 after a 5xx or a broken connection, a traceback, a stuck request, a slow response or growing memory.
"""

import argparse
import asyncio
import base64
import io
import json
import tempfile
import time
from collections import Counter
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

from app.bench.local_server import run_server
from tests.app.colours import PHOTO, save_model
from tests.load.metrics import read_metrics

_CLIENTS = 16
_PARTS = 10
_MAX_GROWTH = 0.05
_MAX_SECONDS = 10.0
_FORMATS: list[tuple[str, str, dict[str, object]]] = [
    ("RGB", "JPEG", {"quality": 90}),
    ("RGB", "JPEG", {"progressive": True}),
    ("L", "JPEG", {}),
    ("CMYK", "JPEG", {}),
    ("RGB", "PNG", {}),
    ("RGBA", "PNG", {}),
    ("P", "PNG", {}),
    ("I;16", "PNG", {}),
    ("RGB", "WEBP", {}),
    ("RGB", "WEBP", {"lossless": True}),
    ("RGB", "BMP", {}),
    ("P", "GIF", {}),
    ("RGB", "TIFF", {"compression": "tiff_lzw"}),
    ("RGB", "TIFF", {"compression": "jpeg"}),
    ("RGB", "MPO", {}),
]
Request = tuple[str, bytes, dict[str, str]]  # path, body, headers


def make_files() -> list[bytes]:
    """Returns an intact image of each format."""
    files = []
    exif = Image.Exif()
    exif[0x0112] = 6
    for mode, kind, options in _FORMATS:
        file = io.BytesIO()
        photo = Image.fromarray(PHOTO).convert("L" if mode == "I;16" else mode)
        photo = photo.convert("I;16") if mode == "I;16" else photo
        photo.save(file, kind, exif=exif, **options) if kind in ("JPEG", "WEBP") else photo.save(file, kind, **options)
        files.append(file.getvalue())
    return files


def damage(data: bytes, random: np.random.Generator) -> bytes:
    """Overwrites, deletes, inserts or repeats bytes in up to six places; one time in ten, in none."""
    damaged = bytearray(data)
    for _ in range(random.integers(0, 7) if random.random() < 0.9 else 0):
        # headers affect decoding more than pixels do: half of the places are in the first 200 bytes
        at = int(random.integers(0, min(len(damaged), 200 if random.random() < 0.5 else len(damaged)) + 1))
        length = int(2 ** random.uniform(0, 6))
        match random.integers(5):
            case 0:
                damaged[at : at + length] = random.bytes(length)
            case 1:
                del damaged[at : at + length]
            case 2:
                damaged[at:at] = random.bytes(length)
            case 3:
                damaged[at:at] = damaged[at : at + length] * int(random.integers(1, 30))
            case _:
                damaged[at : at + 4] = random.choice(
                    [b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\0\0\0\1"]
                )
    return bytes(damaged)


def make_request(files: list[bytes], random: np.random.Generator) -> Request:
    """Returns a request with a damaged image, or with an image in a damaged body."""
    data = files[random.integers(len(files))]
    form = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + data + b"\r\n--x--\r\n"
    text = base64.b64encode(data).decode()
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES"}
    match random.integers(8):
        case 0:
            return "/detect/batch", damage(form * 3, random), {"content-type": "multipart/form-data; boundary=x"}
        case 1:
            body = json.dumps({"images": [text] * 3}).encode()
            return "/detect/batch", damage(body, random), {"content-type": "application/json"}
        case 2:
            return "/v1/vision/detection", damage(form, random), {"content-type": "multipart/form-data; boundary=x"}
        case 3:
            head = json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": len(data) + 4}}]}).encode()
            body = damage(head, random) + len(data).to_bytes(4, "little") + data
            return "/v2/models/colours/infer", body, {"inference-header-content-length": str(len(head))}
        case 4:
            accept = str(random.choice(["image/jpeg", "image/png"]))
            return "/detect?threshold=0", damage(data, random), {"accept": accept}
        case _:
            return "/detect", damage(data, random), {}


async def send(port: int, count: int, seed: int) -> tuple[Counter[int], float, list[Request]]:
    """Sends `count` requests; returns the responses by status (0: none), the longest time, and the failed requests."""
    statuses: Counter[int] = Counter()
    longest, failed = 0.0, list[Request]()
    files = make_files()

    async def run_client(number: int) -> None:
        nonlocal longest
        random = np.random.default_rng((seed, number))
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            for _ in range(number, count, _CLIENTS):
                path, body, headers = request = make_request(files, random)
                started = time.monotonic()
                try:
                    status = (await client.post(path, content=body, headers=headers)).status_code
                except httpx.HTTPError:
                    status = 0
                longest = max(longest, time.monotonic() - started)
                statuses[status] += 1
                if status == 0 or status >= 500:
                    failed.append(request)

    await asyncio.gather(*(run_client(number) for number in range(_CLIENTS)))
    return statuses, longest, failed


async def send_largest(port: int) -> None:
    """Sends the largest images, so that memory that the allocator retains for them does not count as growth later."""
    file = io.BytesIO()
    Image.new("1", (7000, 7000)).save(file, "PNG")
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        for accept in ("application/json", "image/jpeg"):
            headers = {"accept": accept}
            posts = [client.post("/detect", content=file.getvalue(), headers=headers) for _ in range(_CLIENTS)]
            assert {response.status_code for response in await asyncio.gather(*posts)} == {200}


def main() -> None:
    """Sends the requests, prints the results and exits with their verdict."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=120_000, help="how many to send; default: %(default)s")
    parser.add_argument(
        "--seed", type=int, default=int(time.time()), help="of the random damage; default: the current time"
    )
    options, arguments = parser.parse_known_args()
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory() as name, tempfile.TemporaryFile() as log:
        model = save_model(Path(name) / "colours.onnx")
        with run_server([f"--model={model}", "--provider=cpu", "--log-level=warning", *arguments], log) as port:
            statuses, longest, failed, memory = Counter[int](), 0.0, list[Request](), list[float]()
            asyncio.run(send_largest(port))
            for part in range(_PARTS):
                more, longer, others = asyncio.run(send(port, options.requests // _PARTS, options.seed + part))
                statuses, longest, failed = statuses + more, max(longest, longer), failed + others
                memory.append((after := read_metrics(port))["process_resident_memory_bytes"] / 2**20)
        log.seek(0)
        tracebacks = log.read().count(b"Traceback")
    growth = memory[-1] / memory[0] - 1
    print(
        f"{statuses.total()} requests: responses by status {dict(sorted(statuses.items()))}; slowest {longest:.2f} s;"
        f" {int(after['centernet_requests_in_flight'])} still in flight; {tracebacks} tracebacks in the log;"
        f" memory after each tenth: {', '.join(f'{each:.0f}' for each in memory)} MiB,"
        f" {100 * growth:+.1f} % since the first"
    )
    for path, body, headers in failed[:5]:
        print(f"failed request: {path} {headers} {base64.b64encode(body).decode()}")
    has_passed = (
        not failed
        and not tracebacks
        and not after["centernet_requests_in_flight"]
        and growth < _MAX_GROWTH
        and longest < _MAX_SECONDS
    )
    print("PASSED" if has_passed else "FAILED")
    raise SystemExit(not has_passed)


if __name__ == "__main__":
    main()
