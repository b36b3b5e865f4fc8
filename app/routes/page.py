"""The demo page at `/`: static files from the folder `page`, which call this server only."""

import hashlib
import importlib.resources
from collections.abc import Awaitable, Callable

from fastapi import APIRouter, Request, Response

_MEDIA_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",  # browsers reject modules of other types
    "svg": "image/svg+xml",
}
_HEADERS = {
    "cache-control": "no-cache",  # cached, but revalidated by ETag: never older than the API
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "permissions-policy": "camera=(self)",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def build_page_router() -> APIRouter:
    """Returns the routes `/` and `/page/<file>`, which serve from memory and are not in the OpenAPI document."""
    router = APIRouter(include_in_schema=False)
    for file in (importlib.resources.files("app.routes") / "page").iterdir():
        path = "/" if file.name == "index.html" else f"/page/{file.name}"
        send = _build_endpoint(file.read_bytes(), _MEDIA_TYPES[file.name.rpartition(".")[2]])
        router.add_api_route(path, send)
    return router


def _build_endpoint(content: bytes, media_type: str) -> Callable[[Request], Awaitable[Response]]:
    """Returns the endpoint for one file; it responds 304 if the browser's copy is current (RFC 9110, 13.1.2)."""
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = _HEADERS | {"etag": etag}

    async def send(request: Request) -> Response:
        if etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=media_type, headers=headers)

    return send
