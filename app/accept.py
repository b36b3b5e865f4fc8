"""Chooses what to answer with by the client's `Accept` header (RFC 9110, 12.5.1)."""

import functools
from collections.abc import Sequence


class NotAcceptable(Exception):
    """The client accepts nothing that the route can give."""


@functools.lru_cache  # most clients send the same
def choose_media_type(accept: str, offered: tuple[str, ...]) -> str:
    """Returns the media type of `offered` that the client likes best, the first of equals; raises `NotAcceptable`.

    An empty `accept` takes anything.
    """
    ranges = [_parse(each) for each in (accept or "*/*").split(",")]
    likings = {media_type: _like(media_type, ranges) for media_type in offered}
    best = max(offered, key=lambda media_type: likings[media_type])
    if likings[best] <= 0:
        raise NotAcceptable(f"nothing here is {accept}; there is {', '.join(offered)}")
    return best


def _parse(media_range: str) -> tuple[str, float]:
    name, *parameters = (each.strip().lower() for each in media_range.split(";"))
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key.strip() == "q":
            try:
                return name, float(value)
            except ValueError:
                return name, 0
    return name, 1


def _like(media_type: str, ranges: Sequence[tuple[str, float]]) -> float:
    """Returns the quality that the most specific range gives a type; 0 where none fits."""
    for fitting in (media_type, f"{media_type.split('/')[0]}/*", "*/*"):
        for name, quality in ranges:
            if name == fitting:
                return quality
    return 0
