"""Refuses at the door where every place is taken: what is refused in plenty must cost little."""

import logging
from collections.abc import Sequence

from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from app.errors import respond
from app.service import Service

logger = logging.getLogger(__name__)


class RefuseOverload:
    """ASGI middleware that answers POST requests to `routes` before they are looked into, when no model has room.

    A route refuses by itself too: it knows which model is asked for, and how much time there is.
    """

    def __init__(self, app: ASGIApp, service: Service, routes: Sequence[BaseRoute]) -> None:
        self._app = app
        self._service = service
        self._routes = {route.path: route for route in routes if isinstance(route, Route)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request, or refuses it."""
        route = self._routes.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        overload = self._service.find_overload() if route else None
        if overload is None:
            await self._app(scope, receive, send)
            return
        scope["route"] = route  # for the metrics
        logger.info("%s %s: 503 %s", scope["method"], scope["path"], overload)
        await respond(overload, self._service.metrics)(scope, receive, send)
