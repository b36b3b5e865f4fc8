"""The server's settings: each is a flag, and an environment variable `CENTERNET_*` of the same name."""

import argparse
import difflib
import importlib.resources
import itertools
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, CliSettingsSource, NoDecode, SettingsConfigDict

from app import __version__
from app.access.keys import Digest, hash_keys
from app.requests.deadline import Timeout
from app.telemetry.logs import LogFormat
from model.errors import UserError
from model.gpu import Gpu, Provider
from model.image import MAX_PIXELS, PILLOW_MAX_PIXELS
from model.metadata import Metadata
from model.session import count_cpus

logger = logging.getLogger(__name__)

_PREFIX = "CENTERNET_"
_THRESHOLD = 0.3  # for models whose metadata has none
_METAVARS = {"bool": "{true,false}", "int": "N", "float": "NUMBER", "Path": "PATH"}  # in --help, by type


class InvalidSettings(UserError):
    """At least one setting is invalid; the message has a line for each."""


def find_shipped_model(name: str = "default") -> Path:
    """Returns the path of the shipped model of that name in the installed package."""
    return Path(str(importlib.resources.files("model") / "weights" / f"{name}.onnx"))


class Settings(BaseSettings):
    """Serves object detection over HTTP. `python -m app detect` detects objects in files instead.

    Each flag is also an environment variable: --max-batch is CENTERNET_MAX_BATCH.
    """

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX,
        env_ignore_empty=True,
        cli_kebab_case=True,
        cli_hide_none_type=True,
        frozen=True,
    )

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 for all interfaces")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 for any free one")
    metrics_port: int | None = Field(
        None, ge=0, le=65535, description="separate port for /metrics and /models/reload; 0 for any free one"
    )
    metrics_host: str | None = Field(None, description="address to listen on for metrics_port; unless set, host")
    model: Annotated[tuple[Path, ...], NoDecode] = Field(
        default_factory=lambda: (find_shipped_model(),),
        description="ONNX files written by `training export`, folders of them, or names of shipped models (default, "
        "fast; default-fp32 for GPUs), separated by commas; unless set, the shipped default; the first is used where a "
        "request names none; a watched folder may be empty if there is another model",
    )
    watch: bool = Field(False, description="reload models when their files change; SIGHUP reloads at any time")
    provider: Provider = Field(
        "auto", description="auto is CUDA if it works, else the CPU; tensorrt needs NVIDIA's TensorRT 10"
    )
    cuda_graphs: bool = Field(False, description="capture a CUDA graph for each batch size and replay it")
    engine_cache: Path | None = Field(
        None, description="folder to cache TensorRT engines in; without it each start takes minutes to build them"
    )
    tensorrt_half: bool = Field(False, description="let TensorRT use half precision where it is faster")
    threads: int = Field(
        default_factory=count_cpus,
        ge=1,
        description="CPU threads for inference, per model; unless set, all usable CPUs",
    )
    instances: int | None = Field(
        None, ge=1, description="concurrent inferences, which share the threads; unless set, measured at startup"
    )
    decode_threads: int = Field(
        default_factory=count_cpus,
        ge=1,
        description="threads that decode images; unless set, all usable CPUs; instances of one thread decode their own",
    )
    max_batch: int | None = Field(
        None, ge=1, description="maximum images per inference batch; unless set, measured at startup"
    )
    max_batch_seconds: float = Field(0.5, gt=0, description="maximum duration of a batch whose size is measured")
    max_queue: int = Field(64, ge=1, description="maximum images in flight: being decoded, queued or computed")
    max_connections: int = Field(2048, ge=1, description="maximum client connections; above it, 503")
    max_header_bytes: int = Field(
        32 * 2**10, ge=1, description="maximum size of a request's line and headers; above it, 431"
    )
    max_image_bytes: int = Field(20 * 2**20, ge=1, description="maximum request body for one image")
    max_request_bytes: int = Field(64 * 2**20, ge=1, description="maximum request body for several images")
    max_held_bytes: int = Field(
        256 * 2**20,
        ge=1,
        description="maximum memory for request bodies; above it the oldest upload is aborted, 408, or else 503",
    )
    max_request_images: int = Field(32, ge=1, description="maximum images per request; max_queue limits it too")
    max_pixels: int = Field(MAX_PIXELS, ge=1, le=PILLOW_MAX_PIXELS, description="maximum width x height of an image")
    timeout_seconds: Timeout = Field(30, description="default timeout of a request, which may set its own")
    inference_timeout_seconds: float = Field(60, gt=0, description="timeout of a batch, after which it fails")
    header_timeout_seconds: float = Field(10, gt=0, description="timeout for receiving a request's headers")
    idle_timeout_seconds: float = Field(5, gt=0, description="keep-alive timeout of a connection without a request")
    answer_timeout_seconds: float = Field(60, gt=0, description="timeout for the client to read a response")
    body_timeout_seconds: float = Field(20, gt=0, description="timeout for receiving a request's body")
    threshold: float | None = Field(
        None, ge=0, le=1, description="default minimum score of a detection; unset: the model's own threshold"
    )
    limit: int = Field(
        100, ge=1, description="default maximum number of detections per image; a model has a maximum too"
    )
    deepstack_limit: int = Field(20, ge=1, description="like limit, for /v1/vision: Frigate reads no more than 20")
    api_keys: Annotated[tuple[Digest, ...], NoDecode] = Field(
        (), repr=False, description="keys that clients must send, separated by commas; unset: no authentication"
    )
    api_keys_file: Path | None = Field(
        None, description="file with further keys, one per line; # begins a comment line"
    )
    address_requests_per_minute: int | None = Field(None, ge=1, description="rate limit per client address")
    key_requests_per_minute: int | None = Field(None, ge=1, description="rate limit per API key")
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="origins whose pages may call the server, such as https://example.com, separated by commas; * is "
        "all",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="minimum severity to log")
    traces: bool = Field(
        False, description="export OpenTelemetry traces to OTEL_EXPORTER_OTLP_ENDPOINT; needs the extra otel"
    )
    stop_timeout_seconds: float = Field(
        8, gt=0, description="how long a graceful shutdown waits for requests; docker stop kills after 10 s"
    )
    log_format: LogFormat = Field("plain", description="json writes one object per line")

    @field_validator("model", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        values = value if isinstance(value, list | tuple) else [value]
        parts = [part for each in values for part in (each.split(",") if isinstance(each, str) else [each])]
        return tuple(part.strip() if isinstance(part, str) else part for part in parts)

    @field_validator("model")
    @classmethod
    def _must_exist(cls, paths: tuple[Path, ...]) -> tuple[Path, ...]:
        found = [path if path.exists() else find_shipped_model(str(path)) for path in paths]
        for path, file in zip(paths, found, strict=True):
            if path == Path() or not file.exists():
                raise ValueError(f"there is no file {path}; give the path of an exported model")
            if not os.access(file, os.R_OK | os.X_OK if file.is_dir() else os.R_OK):
                raise ValueError(f"{path} cannot be read by this user; change its permissions")
        return tuple(found)

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _split_origins(cls, value: object) -> object:
        return tuple(origin.strip().lower() for origin in value.split(",")) if isinstance(value, str) else value

    @field_validator("cors_origins")
    @classmethod
    def _must_be_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            # browsers send no default port
            if origin != "*" and not re.fullmatch(r"(https://(?!.*:443$)|http://(?!.*:80$))[^/?#@*]+", origin):
                raise ValueError(f"{origin!r} is not an origin: write it as https://example.com, only host and port")
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
            raise ValueError(f"{path} is not a writable folder; create it")
        return path

    @model_validator(mode="after")
    def _must_hold_models(self) -> Self:
        try:
            serves = bool(self.find_models())
            # a watched folder may be empty at first if another model is served
            optional = [path for path in self.model if serves and self.watch and path.is_dir()]
        except OSError as error:
            raise ValueError(f"model: {error.filename} cannot be listed: {error.strerror}") from error
        for path in self.model:
            if not _list_models(path) and path not in optional:
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
            raise ValueError("metrics_host: it has no effect without metrics_port; set that too")
        return self

    def find_keys(self) -> tuple[Digest, ...]:
        """Returns the digests of all API keys; empty if authentication is disabled."""
        return self.api_keys + (_read_keys(self.api_keys_file) if self.api_keys_file else ())

    @property
    def gpu(self) -> Gpu:
        """The options for GPU inference."""
        return Gpu(self.cuda_graphs, self.engine_cache, self.tensorrt_half)

    def find_models(self) -> list[Path]:
        """Returns the model files that exist now, in the order of the setting; those of a folder by name.

        Raises `OSError` if they cannot be listed.
        """
        return list(dict.fromkeys(file for path in self.model for file in _list_models(path)))

    def find_threshold(self, metadata: Metadata) -> float:
        """Returns the default minimum score for a model's detections."""
        if self.threshold is not None:
            return self.threshold
        return _THRESHOLD if metadata.threshold is None else metadata.threshold


def warn_of_unknown_variables(*also_known: str) -> None:
    """Logs a warning for each environment variable `CENTERNET_*` that is no setting, such as a misspelt one."""
    known = [name.upper() for name in (*Settings.model_fields, *also_known)]
    for name in sorted(variable.removeprefix(_PREFIX) for variable in os.environ if variable.startswith(_PREFIX)):
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {_PREFIX}{near[0]}?" if near else "see --help"
            logger.warning("%s%s is not a setting: %s", _PREFIX, name, hint)


def _list_models(path: Path) -> list[Path]:
    try:  # `glob` and `is_dir` would find nothing in a folder that cannot be read, and its models would be retired
        return sorted(file for file in path.iterdir() if file.suffix == ".onnx")
    except NotADirectoryError:
        return [path] if path.is_file() else []
    except FileNotFoundError:
        return []


def _read_keys(path: Path) -> tuple[Digest, ...]:
    try:
        lines = (line.strip() for line in path.read_text().splitlines())
        return hash_keys([line for line in lines if line and not line.startswith("#")])
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"it cannot be read: {error}") from error


def read_settings(arguments: Sequence[str]) -> Settings:
    """Reads settings from flags, then from the environment; raises `InvalidSettings`.

    Exits as argparse does on an unknown flag, and after `--help` or `--version`.
    """
    parser = argparse.ArgumentParser("centernet-serve", description=Settings.__doc__)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    flags: CliSettingsSource[Any] = CliSettingsSource(
        Settings, root_parser=parser, cli_parse_args=list(arguments), add_argument_method=_add_flag
    )
    for before, argument in itertools.pairwise(["", *arguments]):
        if not argument or re.fullmatch("--[a-z-]+=", argument):
            raise InvalidSettings(f"{argument or before}: the value is empty; leave the flag out for the default")
    try:
        return Settings(_cli_settings_source=flags)
    except ValidationError as error:
        lines = [
            ": ".join([*map(str, each["loc"]), each["msg"].removeprefix("Value error, ")]) for each in error.errors()
        ]
        raise InvalidSettings("\n".join(lines)) from error


def _add_flag(parser: Any, *names: str, **options: Any) -> Any:
    """Adds a flag as argparse does, but without the names of Python types, functions and null in its help."""
    if not options["metavar"].startswith("{"):  # else the choices
        options["metavar"] = _METAVARS.get(options["metavar"], "TEXT")
    options["help"] = re.sub(r" \(default(: null|: \(\)| factory: .*)\)$", "", options["help"])
    return parser.add_argument(*names, **options)
