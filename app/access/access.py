"""Authentication by API key, and rate limits per client address and per key."""

from collections.abc import Sequence
from typing import Any

from fastapi import Depends, Request, Security
from fastapi.security import APIKeyHeader, HTTPBearer

from app.access.keys import check_key
from app.access.rates import RateLimit, find_network
from app.requests.form import Part, find_text
from app.settings import Settings

_BEARER = HTTPBearer(auto_error=False)
_HEADER = APIKeyHeader(name="X-API-Key", auto_error=False)


class Access:
    """Applies the rate limits, and requires a known API key if any is configured.

    `guards` are the FastAPI dependencies that do both. Routes whose form may carry the key use `form_guards` instead
    and call `authenticate` themselves.
    """

    def __init__(self, settings: Settings) -> None:
        self._keys = settings.find_keys()
        self._address_limit = _build_limit(settings.address_requests_per_minute)
        self._key_limit = _build_limit(settings.key_requests_per_minute)
        schemes = [Security(_BEARER), Security(_HEADER)] if self._keys else []  # for OpenAPI
        self.form_guards: list[Any] = [*schemes, Depends(self._count_address)] if self._address_limit else schemes
        self.guards: list[Any] = [*self.form_guards, Depends(self._authenticate)] if self._keys else self.form_guards

    async def authenticate(self, request: Request, form: Sequence[Part] = ()) -> None:
        """Checks the key in a header or in the form's field `api_key`; raises `Unauthorized` and `RateLimited`."""
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


def _build_limit(per_minute: int | None) -> RateLimit | None:
    return RateLimit(per_minute) if per_minute else None
