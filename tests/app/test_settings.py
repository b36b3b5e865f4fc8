import hashlib
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from app.settings import InvalidSettings, Settings, find_shipped_model, read_settings, warn_of_unknown_variables


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, model_path: Path) -> None:
    monkeypatch.setenv("CENTERNET_MODEL", str(model_path))


def test_defaults(model_path: Path) -> None:
    settings = read_settings([])
    assert settings.model == (model_path,)
    assert (settings.host, settings.port, settings.provider) == ("127.0.0.1", 8000, "auto")
    assert (settings.threshold, settings.limit) == (None, 100)
    assert (settings.max_image_bytes, settings.max_pixels) == (20_971_520, 50_000_000)
    assert settings.threads >= 1
    assert settings.decode_threads >= 1


def test_flags_override_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CENTERNET_MAX_BATCH", "3")
    monkeypatch.setenv("CENTERNET_PORT", "")
    assert read_settings([]).max_batch == 3
    assert read_settings([]).port == 8000
    assert read_settings(["--max-batch", "5"]).max_batch == 5


@pytest.mark.parametrize("name", sorted(Settings.model_fields))
def test_each_setting_is_a_flag_and_a_variable(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "other.onnx").touch()
    (tmp_path / "keys").write_text("first\n\nsecond\n")
    values = {
        "api_keys_file": str(tmp_path / "keys"),
        "host": "::1",
        "metrics_host": "::1",
        "model": str(tmp_path / "other.onnx"),
        "provider": "cpu",
        "cuda_graphs": "true",
        "engine_cache": str(tmp_path),
        "tensorrt_half": "true",
        "cors_origins": "https://example.com",
        "max_held_bytes": "100000000",
        "log_level": "debug",
        "log_format": "json",
        "traces": "true",
        "watch": "true",
    }
    value = values.get(name, "1")
    needed = {"metrics_host": "METRICS_PORT", "key_requests_per_minute": "API_KEYS"}
    if name in needed:
        monkeypatch.setenv(f"CENTERNET_{needed[name]}", "1")
    by_flag = getattr(read_settings([f"--{name.replace('_', '-')}={value}"]), name)
    monkeypatch.setenv(f"CENTERNET_{name.upper()}", value)
    assert getattr(read_settings([]), name) == by_flag
    read = {"model": (Path(value),), "cors_origins": (value,), "api_keys": (hashlib.sha256(b"1").digest(),)}
    assert by_flag == read[name] if name in read else str(by_flag).lower() in (value.lower(), "1.0")


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("port", "70000"),
        ("provider", "tpu"),
        ("engine-cache", "/nowhere"),
        ("threads", "0"),
        ("max-batch", "many"),
        ("threshold", "1.5"),
        ("model", "/nowhere.onnx"),
        ("log-level", "loud"),
        ("cors-origins", "https://example.com/"),
        ("cors-origins", "example.com"),
        ("cors-origins", "https://example.com:443"),
        ("cors-origins", "http://example.com:80"),
        ("model", "default,"),
        ("address-requests-per-minute", "0"),
        ("max-held-bytes", "1000"),
        ("max-pixels", "200000000"),
        ("timeout-seconds", "4000"),
        ("timeout-seconds", "inf"),
        ("key-requests-per-minute", "10"),
        ("metrics-host", "0.0.0.0"),
        ("api-keys", ","),
        ("api-keys", "schlüssel"),
        ("api-keys-file", "/nowhere"),
        ("api-keys-file", "/dev/null"),
    ],
)
def test_invalid_setting_is_named_in_the_error(flag: str, value: str) -> None:
    with pytest.raises(InvalidSettings) as caught:
        read_settings([f"--{flag}", value])
    assert str(caught.value).startswith(f"{flag.replace('-', '_')}: ")
    assert "\n" not in str(caught.value)


def test_shipped_models_are_selected_by_name(model_path: Path) -> None:
    settings = read_settings([f"--model={model_path}, default-fp32"])
    assert settings.model == (model_path, find_shipped_model("default-fp32"))
    assert settings.find_models()[1].exists()


@pytest.mark.parametrize("flag", ["max-image-bytes", "max-request-bytes"])
def test_body_that_never_fits_into_memory_is_refused(flag: str) -> None:
    with pytest.raises(InvalidSettings, match="max_held_bytes: it is less than"):
        read_settings([f"--{flag}", str(256 * 2**20 + 1)])
    read_settings([f"--{flag}", str(256 * 2**20)])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--port", "70000"], "port: Input should be less than or equal to 65535"),
        (["--model", "/nowhere.onnx"], "there is no file /nowhere.onnx"),
        (["--model", __file__], f"{__file__}: it cannot be opened"),
        (["--unknown", "1"], "--unknown"),
    ],
)
def test_failed_start_exits_with_status_2_and_no_traceback(arguments: list[str], words: str) -> None:
    finished = subprocess.run([sys.executable, "-m", "app", *arguments], capture_output=True, text=True)
    assert finished.returncode == 2
    assert words in finished.stderr
    assert "Traceback" not in finished.stderr
    assert finished.stdout == ""


def test_occupied_port_is_named_in_the_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as occupied:
        port = occupied.getsockname()[1]
        arguments = [sys.executable, "-m", "app", "--port", str(port), "--provider", "cpu"]
        finished = subprocess.run(arguments, capture_output=True, text=True)
    assert finished.returncode == 2
    assert finished.stderr.splitlines()[-1] == (
        f"centernet-serve: cannot listen on 127.0.0.1, port {port}: Address already in use"
    )


def test_watched_folder_may_be_empty_beside_another_model(model_path: Path, tmp_path: Path) -> None:
    both = f"{tmp_path},{model_path}"
    assert read_settings(["--model", both, "--watch", "true"]).find_models() == [model_path]
    for arguments in (["--model", both], ["--model", str(tmp_path), "--watch", "true"]):
        with pytest.raises(InvalidSettings, match=f"^model: there is no .onnx file in {tmp_path}"):
            read_settings(arguments)


def test_unknown_variables_are_logged_with_the_nearest_setting(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("CENTERNET_MAX_QEUE", "CENTERNET_MAX_QUEUE", "CENTERNET_API_KEY", "CENTERNET_XYZ"):
        monkeypatch.setenv(name, "3")
    warn_of_unknown_variables("api_key")
    expected = [
        "CENTERNET_MAX_QEUE is not a setting: did you mean CENTERNET_MAX_QUEUE?",
        "CENTERNET_XYZ is not a setting: see --help",
    ]
    assert caplog.messages == expected
    caplog.clear()
    warn_of_unknown_variables()
    assert caplog.messages == [
        "CENTERNET_API_KEY is not a setting: did you mean CENTERNET_API_KEYS?",
        *expected,
    ]


@pytest.mark.parametrize("arguments", [["--api-keys", ""], ["--api-keys="], ["--port", "1", "--threshold="]])
def test_empty_flag_is_refused(arguments: list[str]) -> None:
    with pytest.raises(InvalidSettings, match="the value is empty"):
        read_settings(arguments)


def test_key_file_has_one_key_per_line_and_comments(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# cameras in the yard\nfirst=\n\n  second\r\n")
    keys = read_settings(["--api-keys-file", str(path)]).find_keys()
    assert keys == tuple(hashlib.sha256(key).digest() for key in (b"first=", b"second"))
    path.write_text("my secret\n")
    with pytest.raises(InvalidSettings, match="without spaces"):
        read_settings(["--api-keys-file", str(path)])


def test_help_names_every_flag_and_no_python() -> None:
    finished = subprocess.run([sys.executable, "-m", "app", "--help"], capture_output=True, text=True, check=True)
    for name in Settings.model_fields:
        assert f"--{name.replace('_', '-')}" in finished.stdout
    assert not re.search(r"tuple|lambda|null|factory|\bint\b|\bstr\b|\(\)", finished.stdout)
