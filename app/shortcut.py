"""The shorter way to endpoints that need nothing of FastAPI's."""

from collections.abc import Iterable

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Receive, Scope, Send


class Shortcut:
    """ASGI middleware that hands a POST to one of the `routes` right to its endpoint; each has a path of its own.

    Such an endpoint takes the request itself, gives the response, and has no dependencies: there is nothing for FastAPI
    to find, read, check or convert then, and that costs it as much as everything else that is done for a request here.
    """

    def __init__(self, app: ASGIApp, routes: Iterable[APIRoute]) -> None:
        self._app = app
        self._routes = {route.path: route for route in routes}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        is_post = scope["type"] == "http" and scope["method"] == "POST"
        route = self._routes.get(scope["path"]) if is_post else None
        if route is None:
            await self._app(scope, receive, send)
            return
        scope["route"] = route
        response = await route.endpoint(Request(scope, receive, send))
        await response(scope, receive, send)
