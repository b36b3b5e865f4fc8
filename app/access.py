"""Who may use the routes, and how often."""

from collections.abc import Sequence
from typing import Any

from fastapi import Depends, Request, Security
from fastapi.security import APIKeyHeader, HTTPBearer

from app.form import Part, find_text
from app.keys import check_key
from app.rates import RateLimit, find_network
from app.settings import Settings

_BEARER = HTTPBearer(auto_error=False)
_HEADER = APIKeyHeader(name="X-API-Key", auto_error=False)


class Access:
    """Counts the requests of an address and of a key, and lets in who sends a known key, or all where none is set.

    `guards` are a route's dependencies that do so; with `form_guards` instead, the route itself calls `authenticate`,
    since the key may be in its form.
    """

    def __init__(self, settings: Settings) -> None:
        self._keys = settings.find_keys()
        self._address_limit = _limit(settings.address_requests_per_minute)
        self._key_limit = _limit(settings.key_requests_per_minute)
        schemes = [Security(_BEARER), Security(_HEADER)] if self._keys else []  # what the documentation shows
        self.form_guards: list[Any] = [*schemes, Depends(self._count_address)] if self._address_limit else schemes
        self.guards: list[Any] = [*self.form_guards, Depends(self._authenticate)] if self._keys else self.form_guards

    async def authenticate(self, request: Request, form: Sequence[Part] = ()) -> None:
        """Raises `Unauthorized` unless a header, or the form's field `api_key`, holds a known key; `RateLimited`."""
        if not self._keys:
            return
        bearer = await _BEARER(request)
        key = bearer.credentials if bearer else await _HEADER(request)
        digest = check_key(key or find_text(form, "api_key"), self._keys)
        if self._key_limit:
            await self._key_limit.count(digest)

    async def _authenticate(self, request: Request) -> None:
        await self.authenticate(request)

    async def _count_address(self, request: Request) -> None:
        if self._address_limit:
            await self._address_limit.count(find_network(request.client.host if request.client else ""))


def _limit(per_minute: int | None) -> RateLimit | None:
    return RateLimit(per_minute) if per_minute else None
