"""The Python client: `Client`, and `AsyncClient` for asyncio and trio."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Literal, Self, TypedDict, TypeVar, Unpack

import anyio
import anyio.to_thread
import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from app.schemas import Answer, Answers, ModelDescription, ModelList, Problem, Refused
from model.image import encode

try:
    import httpx
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("the client needs httpx: pip install 'centernet-service[client]'") from error

__all__ = ["AsyncClient", "Client", "Image", "NoAnswer", "Refused", "Wanted"]

Image = bytes | Path | NDArray[np.uint8]  # an image file's bytes, its path, or RGB pixels (h, w, 3)
Result = TypeVar("Result")
Model = TypeVar("Model", bound=BaseModel)

_MAX_RETRY_SECONDS = 60


class NoAnswer(ConnectionError):
    """The server cannot be reached, or the response is not one of this server."""


class Wanted(TypedDict, total=False):
    """The parameters of a detection; the server's defaults apply to those that are missing or None."""

    model: str | None  # a name from `models()`
    threshold: float | None  # minimum score, 0 to 1
    limit: int | None  # maximum number of detections per image
    labels: str | Sequence[str] | None  # labels to return; a string may hold several, separated by commas


class Client:
    """A client of the server at `url`: `with Client("http://127.0.0.1:8000") as client: client.detect(image)`.

    `timeout_seconds` limits each network operation. A request that the server rejects with a `Retry-After` of at most
    60 s is sent again, up to `retries` times. Every method raises `NoAnswer`, and `Refused` with the server's problem;
    methods that take images also raise `OSError` for a file that cannot be read and `ValueError` for an array that is
    not an image.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_seconds: float = 60,
        api_key: str | None = None,
        retries: int = 3,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._http = httpx.Client(**_configure(url, timeout_seconds, api_key), transport=transport)
        self._retries = retries

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def detect(self, image: Image, **wanted: Unpack[Wanted]) -> Answer:
        """Finds objects in an image."""
        return self._send(_detect(_to_file(image), wanted))

    def detect_batch(self, images: Sequence[Image], **wanted: Unpack[Wanted]) -> list[Answer | Problem]:
        """Finds objects in several images sent at once; one result for each in order, a broken one's is its problem."""
        return self._send(_detect_batch([_to_file(image) for image in images], wanted))

    def draw(self, image: Image, kind: Literal["jpeg", "png"] = "jpeg", **wanted: Unpack[Wanted]) -> bytes:
        """Returns an image file of `kind`, at the image's full size, with what was found drawn."""
        return self._send(_draw(_to_file(image), kind, wanted))

    def models(self) -> list[ModelDescription]:
        """Returns the descriptions of the served models."""
        return self._send(_MODELS)

    def ready(self) -> bool:
        """Whether the server is ready: its models are warmed up and working."""
        return self._send(_READY)

    def _send(self, call: "_Call[Result]") -> Result:
        retries_left = self._retries
        while True:
            with _translating_errors(self._http.base_url):
                response = self._http.request(call.method, call.path, **call.options)
            seconds = _find_wait(response)
            if seconds is None or not retries_left:
                return call.read(response)
            retries_left -= 1
            time.sleep(seconds)


class AsyncClient:
    """The same as `Client`, for `async with` and `await`."""

    def __init__(
        self,
        url: str,
        *,
        timeout_seconds: float = 60,
        api_key: str | None = None,
        retries: int = 3,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._http = httpx.AsyncClient(**_configure(url, timeout_seconds, api_key), transport=transport)
        self._retries = retries

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def detect(self, image: Image, **wanted: Unpack[Wanted]) -> Answer:
        """Finds objects in an image."""
        return await self._send(_detect(await anyio.to_thread.run_sync(_to_file, image), wanted))

    async def detect_batch(self, images: Sequence[Image], **wanted: Unpack[Wanted]) -> list[Answer | Problem]:
        """Finds objects in several images sent at once; one result for each in order, a broken one's is its problem."""
        files = [await anyio.to_thread.run_sync(_to_file, image) for image in images]
        return await self._send(_detect_batch(files, wanted))

    async def draw(self, image: Image, kind: Literal["jpeg", "png"] = "jpeg", **wanted: Unpack[Wanted]) -> bytes:
        """Returns an image file of `kind`, at the image's full size, with what was found drawn."""
        return await self._send(_draw(await anyio.to_thread.run_sync(_to_file, image), kind, wanted))

    async def models(self) -> list[ModelDescription]:
        """Returns the descriptions of the served models."""
        return await self._send(_MODELS)

    async def ready(self) -> bool:
        """Whether the server is ready: its models are warmed up and working."""
        return await self._send(_READY)

    async def _send(self, call: "_Call[Result]") -> Result:
        retries_left = self._retries
        while True:
            with _translating_errors(self._http.base_url):
                response = await self._http.request(call.method, call.path, **call.options)
            seconds = _find_wait(response)
            if seconds is None or not retries_left:
                return call.read(response)
            retries_left -= 1
            await anyio.sleep(seconds)


@dataclasses.dataclass(frozen=True)
class _Call(Generic[Result]):
    """One request with its httpx `options`, and the function that parses the response."""

    method: str
    path: str
    read: Callable[[httpx.Response], Result]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def _detect(file: bytes, wanted: Wanted) -> _Call[Answer]:
    options = {"content": file, "params": _to_query(wanted)}
    return _Call("POST", "/detect", lambda response: _parse(Answer, response), options)


def _detect_batch(files: Sequence[bytes], wanted: Wanted) -> _Call[list[Answer | Problem]]:
    options = {"files": [("images", ("image", file)) for file in files], "params": _to_query(wanted)}
    return _Call("POST", "/detect/batch", lambda response: _parse(Answers, response).results, options)


def _draw(file: bytes, kind: str, wanted: Wanted) -> _Call[bytes]:
    options = {"content": file, "params": _to_query(wanted), "headers": {"accept": f"image/{kind}"}}
    return _Call("POST", "/detect", lambda response: _check(response).content, options)


def _read_readiness(response: httpx.Response) -> bool:
    return response.status_code != 503 and _check(response).is_success


_MODELS: _Call[list[ModelDescription]] = _Call("GET", "/models", lambda response: _parse(ModelList, response).models)
_READY: _Call[bool] = _Call("GET", "/health/ready", _read_readiness)


def _configure(url: str, timeout_seconds: float, api_key: str | None) -> dict[str, Any]:
    """Returns the arguments of httpx's two clients; raises `NoAnswer` for an invalid address."""
    try:
        address = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise NoAnswer(f"{url} is not a valid address: {error}") from error
    if address.scheme not in ("http", "https") or not address.host:
        raise NoAnswer(f"{url} is not a valid address: write it as http://HOST:PORT")
    return {"base_url": address, "timeout": timeout_seconds, "headers": {"x-api-key": api_key} if api_key else {}}


def _to_file(image: Image) -> bytes:
    """Returns an image file's bytes; pixels are encoded as PNG, which is lossless."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, Path):
        return image.read_bytes()
    if not isinstance(image, np.ndarray):
        raise TypeError(f"pass an image file's bytes, its Path, or an array of pixels, not {type(image).__name__}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f"pixels must be uint8, (height, width, 3), RGB; these are {image.dtype}, {image.shape}")
    return encode(image, "png", [cv2.IMWRITE_PNG_COMPRESSION, 1])


def _to_query(wanted: Wanted) -> dict[str, Any]:
    query = {name: value for name, value in wanted.items() if value is not None}
    labels = wanted.get("labels")
    # httpx leaves out an empty list, which would ask for all labels
    return query if labels is None or isinstance(labels, str) else query | {"labels": list(labels) or ""}


@contextlib.contextmanager
def _translating_errors(url: httpx.URL) -> Iterator[None]:
    try:
        yield
    except httpx.HTTPError as error:
        raise NoAnswer(f"no response from {url}: {str(error) or type(error).__name__}") from error


def _find_wait(response: httpx.Response) -> int | None:
    """Returns the seconds after which to retry a request that the server did not process; None if not to be retried."""
    seconds = response.headers.get("retry-after", "")
    if response.status_code not in (429, 503) or not seconds.isdecimal() or int(seconds) > _MAX_RETRY_SECONDS:
        return None
    return int(seconds)


def _check(response: httpx.Response) -> httpx.Response:
    """Returns the response if it is a success; raises `Refused`."""
    if response.is_success:
        return response
    try:
        problem = Problem.model_validate_json(response.content)
    except ValidationError:  # from a proxy in front of the server
        status, detail = response.status_code, response.text.strip()[:200]
        problem = Problem(type="about:blank", title=response.reason_phrase or str(status), status=status, detail=detail)
    raise Refused(problem)


def _parse(model: type[Model], response: httpx.Response) -> Model:
    try:
        return model.model_validate_json(_check(response).content)
    except ValidationError as error:
        raise NoAnswer(f"the response of {response.url} is not from this server, or from another version") from error
