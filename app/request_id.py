"""The id of a request: the client's own or a new one, sent back, and in each line and problem about the request."""

import contextvars
import random
import re

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = "X-Request-ID"
RAW_HEADER = HEADER.lower().encode()
_USABLE = re.compile(r"[!-~]{1,128}")  # visible ASCII
_current = contextvars.ContextVar("request_id", default="")


def get_request_id() -> str:
    """Returns the id of the request being answered; outside of one it is empty."""
    return _current.get()


class identified:  # noqa: N801 - reads as the function that it could be, at a third of its cost
    """Gives the block an id, the one `sent` if it can be used."""

    def __init__(self, sent: str = "") -> None:
        self._id = sent if sent and _USABLE.fullmatch(sent) else f"{random.getrandbits(128):032x}"

    def __enter__(self) -> str:
        self._token = _current.set(self._id)
        return self._id

    def __exit__(self, *error: object) -> None:
        _current.reset(self._token)


class IdentifyRequests:
    """ASGI middleware that gives each request its id, and its answer the header."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def identify(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        with identified(Headers(scope=scope).get(HEADER, "")) as request_id:
            await self._app(scope, receive, identify)
