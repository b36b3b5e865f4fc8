"""Runs the init container's script as in the pod."""

import contextlib
import hashlib
import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import pytest

from tests.kubernetes.manifests import ROOT

SCRIPT = ROOT / "docker" / "kubernetes" / "components" / "model-download" / "fetch.py"
MODEL = bytes(range(256)) * 10_000
DIGEST = hashlib.sha256(MODEL).hexdigest()


class ModelHandler(http.server.BaseHTTPRequestHandler):
    """Serves the model at /model.onnx, redirects /moved to another host name, and truncates the response at /half."""

    protocol_version = "HTTP/1.1"
    requests: list[tuple[str, str | None]]  # path, Authorization

    def do_GET(self) -> None:
        self.requests.append((self.path, self.headers["Authorization"]))
        if self.path == "/moved":
            self.send_response(HTTPStatus.FOUND)
            self.send_header("Location", f"http://localhost:{self.server.server_address[1]}/model.onnx")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif self.path.partition("?")[0] in ("/model.onnx", "/half"):
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Length", str(len(MODEL)))
            self.end_headers()
            self.wfile.write(MODEL if self.path != "/half" else MODEL[:1000])
            self.close_connection = True
        else:
            self.send_error(HTTPStatus.FORBIDDEN)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def model_server() -> Iterator[http.server.HTTPServer]:
    ModelHandler.requests = []
    with http.server.HTTPServer(("127.0.0.1", 0), ModelHandler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        with contextlib.ExitStack() as stack:
            stack.callback(thread.join)
            stack.callback(server.shutdown)
            yield server


def fetch(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", str(SCRIPT), str(folder / "model.onnx")]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def url_of(model_server: http.server.HTTPServer, path: str) -> str:
    return f"http://127.0.0.1:{model_server.server_address[1]}{path}"


def test_model_is_fetched(model_server: http.server.HTTPServer, tmp_path: Path) -> None:
    done = fetch(
        tmp_path,
        MODEL_URL=url_of(model_server, "/model.onnx"),
        MODEL_SHA256=DIGEST.upper(),
        MODEL_AUTHORIZATION="Bearer x",
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert (tmp_path / "model.onnx").read_bytes() == MODEL
    assert ModelHandler.requests == [("/model.onnx", "Bearer x")]


def test_authorization_is_not_sent_to_a_redirects_host(model_server: http.server.HTTPServer, tmp_path: Path) -> None:
    done = fetch(
        tmp_path, MODEL_URL=url_of(model_server, "/moved"), MODEL_SHA256=DIGEST, MODEL_AUTHORIZATION="Bearer x"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert ModelHandler.requests == [("/moved", "Bearer x"), ("/model.onnx", None)]


@pytest.mark.parametrize(
    ("path", "digest", "words"),
    [
        ("/model.onnx", "0" * 64, f"the file at MODEL_URL has the SHA-256 {DIGEST}"),
        ("/half", DIGEST, "has the SHA-256"),
        ("/none?signature=secret", DIGEST, "/none cannot be fetched: HTTP Error 403"),
    ],
)
def test_failed_or_wrong_downloads_leave_no_file(
    model_server: http.server.HTTPServer, tmp_path: Path, path: str, digest: str, words: str
) -> None:
    done = fetch(tmp_path, MODEL_URL=url_of(model_server, path), MODEL_SHA256=digest)
    assert done.returncode == 1
    assert words in done.stderr
    assert "secret" not in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"MODEL_SHA256": DIGEST}, "set MODEL_URL"),
        ({"MODEL_URL": "https://x/y"}, "set MODEL_SHA256"),
        ({"MODEL_URL": "file:///etc/passwd", "MODEL_SHA256": DIGEST}, "must begin with https:// or http://"),
        ({"MODEL_URL": "http://", "MODEL_SHA256": DIGEST}, "cannot be fetched"),
        ({"MODEL_URL": "http://127.0.0.1:1/x", "MODEL_SHA256": DIGEST}, "cannot be fetched"),
    ],
)
def test_invalid_settings_and_unreachable_urls_are_explained(
    tmp_path: Path, environment: dict[str, str], words: str
) -> None:
    done = fetch(tmp_path, **environment)
    assert done.returncode == 1
    assert done.stderr.startswith("fetch: ")
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_existing_model_survives_a_wrong_download(model_server: http.server.HTTPServer, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"old")
    assert fetch(tmp_path, MODEL_URL=url_of(model_server, "/model.onnx"), MODEL_SHA256="0" * 64).returncode == 1
    assert (tmp_path / "model.onnx").read_bytes() == b"old"
