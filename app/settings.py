"""What an operator may set: each a flag, and an environment variable `CENTERNET_*` of the same name."""

import argparse
import importlib.resources
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, CliSettingsSource, NoDecode, SettingsConfigDict

from app import __version__
from app.deadline import LONGEST_SECONDS
from app.keys import Digest, hash_keys
from app.logs import LogFormat
from model.gpu import Gpu, Provider
from model.image import MAX_PIXELS, PILLOW_MAX_PIXELS
from model.metadata import Metadata
from model.session import count_cpus

_PREFIX = "CENTERNET_"
_THRESHOLD = 0.3  # of a model that says none


class InvalidSettings(Exception):
    """A setting cannot be used; the message has a line for each."""


def find_shipped_model(name: str = "default") -> Path:
    """Returns where the installed package keeps the weights of that name."""
    return Path(str(importlib.resources.files("model") / "weights" / f"{name}.onnx"))


class Settings(BaseSettings):
    """Serves object detection over HTTP; `python -m app detect` finds objects in files.

    Flags are environment variables too: --max-batch is CENTERNET_MAX_BATCH.
    """

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX,
        env_ignore_empty=True,
        cli_kebab_case=True,
        cli_hide_none_type=True,
        frozen=True,
    )

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 for all")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 for any free one")
    metrics_port: int | None = Field(
        None, ge=0, le=65535, description="port of its own for /metrics and /models/reload; 0 for any free one"
    )
    metrics_host: str | None = Field(None, description="address to listen on for metrics_port, if it is not host")
    model: Annotated[tuple[Path, ...], NoDecode] = Field(
        default_factory=lambda: (find_shipped_model(),),
        description="ONNX files as `training export` writes them, folders of them, and names of what is shipped "
        "(default, fast; default-fp32 for GPUs), separated by commas; the first is used where a request names none; a "
        "folder that is watched may be empty beside another model",
    )
    watch: bool = Field(False, description="load models again as soon as their files change; SIGHUP does so at once")
    provider: Provider = Field(
        "auto", description="auto is CUDA where it works, else the CPU; tensorrt needs NVIDIA's TensorRT 10"
    )
    cuda_graphs: bool = Field(False, description="record each batch size's work on CUDA once, and start it as one")
    engine_cache: Path | None = Field(
        None, description="folder that keeps TensorRT's engines; without it they are built at each start, for minutes"
    )
    tensorrt_half: bool = Field(False, description="have TensorRT compute in half precision where it is faster")
    threads: int = Field(default_factory=count_cpus, ge=1, description="CPU threads that compute, of one model")
    instances: int | None = Field(
        None, ge=1, description="inferences at once, which share the threads; unless set, measured at the start"
    )
    decode_threads: int = Field(
        default_factory=count_cpus,
        ge=1,
        description="images decoded at once; instances of one thread decode for themselves",
    )
    max_batch: int | None = Field(
        None, ge=1, description="most images in one inference; unless set, measured at the start"
    )
    max_batch_seconds: float = Field(0.5, gt=0, description="longest that a batch of a measured size may take")
    max_queue: int = Field(64, ge=1, description="most images in hand: decoded, waiting or computed")
    max_connections: int = Field(2048, ge=1, description="most connections of clients; above it, 503")
    max_header_bytes: int = Field(32 * 2**10, ge=1, description="longest request line and headers; above it, 431")
    max_image_bytes: int = Field(20 * 2**20, ge=1, description="largest request body of one image")
    max_request_bytes: int = Field(64 * 2**20, ge=1, description="largest request body of several images")
    max_held_bytes: int = Field(
        256 * 2**20,
        ge=1,
        description="most bytes of request bodies in memory; above it the slowest upload is given up, 408, or else 503",
    )
    max_request_images: int = Field(32, ge=1, description="most images in one request, if max_queue is not less")
    max_pixels: int = Field(MAX_PIXELS, ge=1, le=PILLOW_MAX_PIXELS, description="largest width x height of an image")
    timeout_seconds: float = Field(
        30, gt=0, le=LONGEST_SECONDS, description="longest that a request may take, unless it says otherwise"
    )
    inference_timeout_seconds: float = Field(
        60, gt=0, description="longest that a batch may take before it is given up"
    )
    header_timeout_seconds: float = Field(10, gt=0, description="longest that a request's headers may take to arrive")
    idle_timeout_seconds: float = Field(5, gt=0, description="longest that a connection may stay without a request")
    answer_timeout_seconds: float = Field(60, gt=0, description="longest that a client may take to take its answer")
    body_timeout_seconds: float = Field(20, gt=0, description="longest that a body may take to arrive")
    threshold: float | None = Field(
        None, ge=0, le=1, description="least score of a detection, unless a request says otherwise; unset: the model's"
    )
    limit: int = Field(100, ge=1, description="most detections of an image, unless a request says otherwise")
    deepstack_limit: int = Field(20, ge=1, description="as limit, for /v1/vision: Frigate reads no more than 20")
    api_keys: Annotated[tuple[Digest, ...], NoDecode] = Field(
        (), repr=False, description="keys that clients must send, separated by commas; without any, everybody is let in"
    )
    api_keys_file: Path | None = Field(None, description="file of further keys, one a line")
    address_requests_per_minute: int | None = Field(None, ge=1, description="most requests of one client address")
    key_requests_per_minute: int | None = Field(None, ge=1, description="most requests with one key")
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="sites whose pages may call the server, as https://example.com, separated by commas; * is all",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least severity logged")
    traces: bool = Field(
        False, description="send OpenTelemetry traces, where OTEL_EXPORTER_OTLP_ENDPOINT says; needs the extra otel"
    )
    stop_timeout_seconds: float = Field(
        8, gt=0, description="longest that a stop waits for requests; Docker kills after ten"
    )
    log_format: LogFormat = Field("plain", description="json is one object a line")

    @field_validator("model", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        values = value if isinstance(value, list | tuple) else [value]
        return tuple(part for each in values for part in (each.split(",") if isinstance(each, str) else [each]))

    @field_validator("model")
    @classmethod
    def _must_exist(cls, paths: tuple[Path, ...]) -> tuple[Path, ...]:
        found = [path if path.exists() else find_shipped_model(str(path)) for path in paths]
        for path, file in zip(paths, found, strict=True):
            if not file.exists():
                raise ValueError(f"there is no file {path}; name an exported model")
        return tuple(found)

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _split_origins(cls, value: object) -> object:
        return tuple(origin.strip() for origin in value.split(",")) if isinstance(value, str) else value

    @field_validator("cors_origins")
    @classmethod
    def _must_be_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if origin != "*" and not re.fullmatch(r"https?://[^/?#@*]+", origin):
                raise ValueError(f"{origin!r} is no origin: write it as https://example.com, without a path")
        return origins

    @field_validator("api_keys", mode="before")
    @classmethod
    def _hash(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return hash_keys([key.strip() for key in value.split(",") if key.strip()])

    @field_validator("api_keys_file")
    @classmethod
    def _must_hold_keys(cls, path: Path | None) -> Path | None:
        if path:
            _read_keys(path)
        return path

    @field_validator("engine_cache")
    @classmethod
    def _must_be_a_folder(cls, path: Path | None) -> Path | None:
        if path and not (path.is_dir() and os.access(path, os.W_OK)):
            raise ValueError(f"{path} is no folder that can be written to; make it")
        return path

    @model_validator(mode="after")
    def _must_hold_models(self) -> Self:
        serves = bool(self.find_models())
        for path in self.model:
            # a watched folder may wait for its first model while another one serves
            if not _list_models(path) and not (serves and self.watch and path.is_dir()):
                raise ValueError(f"model: there is no .onnx file in {path}; export a model into it")
        return self

    @model_validator(mode="after")
    def _must_hold_one(self) -> Self:
        if self.max_held_bytes < max(self.max_image_bytes, self.max_request_bytes):
            raise ValueError("max_held_bytes: it is less than max_image_bytes or max_request_bytes")
        return self

    @model_validator(mode="after")
    def _must_have_an_effect(self) -> Self:
        if self.key_requests_per_minute and not self.find_keys():
            raise ValueError("key_requests_per_minute: there are no keys; set api_keys, or address_requests_per_minute")
        if self.metrics_host and self.metrics_port is None:
            raise ValueError("metrics_host: it is for metrics_port; set that too")
        return self

    def find_keys(self) -> tuple[Digest, ...]:
        """Returns the digests of all keys that clients may send; none lets everybody in."""
        return self.api_keys + (_read_keys(self.api_keys_file) if self.api_keys_file else ())

    @property
    def gpu(self) -> Gpu:
        """How a GPU computes."""
        return Gpu(self.cuda_graphs, self.engine_cache, self.tensorrt_half)

    def find_models(self) -> list[Path]:
        """Returns the model files that are there now, in the order of the setting, those of a folder by name."""
        return list(dict.fromkeys(file for path in self.model for file in _list_models(path)))

    def find_threshold(self, metadata: Metadata) -> float:
        """Returns the least score of what a model finds, where a request does not say."""
        if self.threshold is not None:
            return self.threshold
        return _THRESHOLD if metadata.threshold is None else metadata.threshold


def find_unknown_variables() -> list[str]:
    """Returns the names in the environment that look like settings and are none; the client's key is no setting."""
    known = {_PREFIX + name.upper() for name in (*Settings.model_fields, "api_key")}
    return sorted(name for name in os.environ if name.startswith(_PREFIX) and name not in known)


def _list_models(path: Path) -> list[Path]:
    return sorted(path.glob("*.onnx")) if path.is_dir() else [path] if path.is_file() else []


def _read_keys(path: Path) -> tuple[Digest, ...]:
    try:
        return hash_keys(path.read_text().split())
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"it cannot be read: {error}") from error


def read_settings(arguments: Sequence[str]) -> Settings:
    """Reads flags, then the environment; raises `InvalidSettings`.

    Exits as argparse does on an unknown flag, and after `--help` and `--version`.
    """
    parser = argparse.ArgumentParser("centernet-serve", description=Settings.__doc__)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    flags: CliSettingsSource[Any] = CliSettingsSource(Settings, root_parser=parser, cli_parse_args=list(arguments))
    try:
        return Settings(_cli_settings_source=flags)
    except ValidationError as error:
        lines = [
            ": ".join([*map(str, fault["loc"]), fault["msg"].removeprefix("Value error, ")]) for fault in error.errors()
        ]
        raise InvalidSettings("\n".join(lines)) from error
