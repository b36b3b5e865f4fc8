"""HEAD, for whatever answers GET (RFC 9110, 9.3.2): uptime monitors ask by it."""

from starlette.types import ASGIApp, Receive, Scope, Send


class AnswerHead:
    """ASGI middleware that has HEAD answered as GET is; the connection leaves the body out."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope.get("method") == "HEAD":
            scope = {**scope, "method": "GET"}  # a copy: the connection still knows
        await self._app(scope, receive, send)
