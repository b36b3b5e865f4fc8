"""Who may use the routes."""

from collections.abc import Sequence
from typing import Any

from fastapi import Depends, Request, Security
from fastapi.security import APIKeyHeader, HTTPBearer

from app.form import Part, find_text
from app.keys import check_key
from app.settings import Settings

_BEARER = HTTPBearer(auto_error=False)
_HEADER = APIKeyHeader(name="X-API-Key", auto_error=False)


class Access:
    """Lets in who sends a known key, or everybody where no key is set.

    `guards` are a route's dependencies that ask for the key; `form_guards` are for routes that call `admit` themselves,
    since their key may be in the form.
    """

    def __init__(self, settings: Settings) -> None:
        self._keys = settings.find_keys()
        self.form_guards: list[Any] = [Security(_BEARER), Security(_HEADER)] if self._keys else []  # as documentation
        self.guards: list[Any] = [*self.form_guards, Depends(self._guard)]

    async def admit(self, request: Request, form: Sequence[Part] = ()) -> None:
        """Raises `Unauthorized` unless a header, or the form's field `api_key`, holds a known key."""
        if self._keys:
            bearer = await _BEARER(request)
            key = bearer.credentials if bearer else await _HEADER(request)
            check_key(key or find_text(form, "api_key"), self._keys)

    async def _guard(self, request: Request) -> None:
        await self.admit(request)
