"""A route that FastAPI documents, and otherwise leaves alone."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute


class DirectRoute(APIRoute):
    """A route without dependencies, whose endpoint takes the request itself and gives the response.

    There is nothing then for FastAPI to read, check or convert, and finding that out costs it time in each request.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Returns the endpoint as it is."""
        return self.endpoint
