"""HEAD for every route that supports GET (RFC 9110, 9.3.2): uptime monitors use it."""

from starlette.types import ASGIApp, Receive, Scope, Send


class HeadAsGet:
    """ASGI middleware that handles HEAD as GET; the connection omits the response's body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope.get("method") == "HEAD":
            scope = {**scope, "method": "GET"}  # a copy: the connection needs the original method
        await self._app(scope, receive, send)
