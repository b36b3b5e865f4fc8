"""Request ids: the client's own or a new one, returned in a header and included in log lines and problems."""

import contextvars
import random
import re

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = "X-Request-ID"
RAW_HEADER = HEADER.lower().encode()
_VALID = re.compile(r"[!-~]{1,128}")  # visible ASCII
_current = contextvars.ContextVar("request_id", default="")


def get_request_id() -> str:
    """Returns the id of the current request; empty outside of a request."""
    return _current.get()


class request_id_context:  # noqa: N801 - used like a @contextmanager function, at a third of its cost
    """Sets the request id for a block: the one that the client `sent` if it is valid, else a new one."""

    def __init__(self, sent: str = "") -> None:
        self._id = sent if sent and _VALID.fullmatch(sent) else f"{random.getrandbits(128):032x}"

    def __enter__(self) -> str:
        self._token = _current.set(self._id)
        return self._id

    def __exit__(self, *error: object) -> None:
        _current.reset(self._token)


class AddRequestIds:
    """ASGI middleware that sets each request's id and adds it to the response's headers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        with request_id_context(Headers(scope=scope).get(HEADER, "")) as request_id:
            await self._app(scope, receive, send_with_id)
