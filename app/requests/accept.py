"""Content negotiation by the client's `Accept` header (RFC 9110, 12.5.1)."""

import functools
from collections.abc import Sequence


class NotAcceptable(Exception):
    """The client accepts none of the media types that the route offers."""


@functools.lru_cache  # most clients send the same header
def choose_media_type(accept: str, offered: tuple[str, ...]) -> str:
    """Returns the offered media type that the client prefers, the first among equals; raises `NotAcceptable`.

    An empty `accept` accepts anything.
    """
    ranges = [_parse(each) for each in (accept or "*/*").split(",")]
    qualities = {media_type: _find_quality(media_type, ranges) for media_type in offered}
    best = max(offered, key=lambda media_type: qualities[media_type])
    if qualities[best] <= 0:
        raise NotAcceptable(f"none of {accept} is available; there is {', '.join(offered)}")
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


def _find_quality(media_type: str, ranges: Sequence[tuple[str, float]]) -> float:
    """Returns the quality value of the most specific matching range; 0 if none matches."""
    for matching in (media_type, f"{media_type.split('/')[0]}/*", "*/*"):
        for name, quality in ranges:
            if name == matching:
                return quality
    return 0
