"""A request's head, where the server looks at it before the HTTP parser does."""

import dataclasses
import functools
import re

from app.telemetry.request_id import RAW_HEADER

Headers = tuple[tuple[bytes, bytes], ...]

# all quantifiers are possessive, so that no input causes backtracking
_PLAIN_HEAD = re.compile(rb"POST /[!-~]*+ HTTP/1\.1\r\n(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]++:[\t -~\x80-\xff]*+\r\n)*+\r\n")
_LEFT_TO_PARSER = {b"transfer-encoding", b"expect", b"upgrade", b"origin"}  # to `origin` the app replies with CORS
_MAX_DIGITS = 18  # of a content-length
_UPGRADE = re.compile(rb"\r\n([Uu][Pp][Gg][Rr][Aa][Dd][Ee])[ \t]*:")
_END = re.compile(rb"\r\n\r\n")


@dataclasses.dataclass(frozen=True, eq=False)
class PlainHead:
    """The head of a keep-alive POST request that has a known body size and no special headers."""

    path: str
    query: bytes
    headers: Headers  # names in lower case
    request_id: str  # the client's own, or empty
    size: int  # bytes, including the empty line
    body_size: int  # bytes


def read_plain_head(data: bytes | memoryview, start: int, end: int) -> PlainHead | None:
    """Reads the head that begins at `start`; None if it does not end before `end`, or is not plain."""
    match = _PLAIN_HEAD.match(data, start, end)
    return _parse(match.group()) if match else None


@functools.lru_cache(128)
def _parse(head: bytes) -> PlainHead | None:  # cached, since refused clients repeat the same request
    request, *lines = head.split(b"\r\n")[:-2]
    headers = []
    for line in lines:
        name, _, value = line.partition(b":")
        headers.append((name.lower(), value.strip()))
    names = [name for name, _ in headers]
    fields = dict(headers)
    length = fields.get(b"content-length", b"0")
    if (
        not _LEFT_TO_PARSER.isdisjoint(names)
        or fields.get(b"connection", b"keep-alive").lower() != b"keep-alive"
        or max(names.count(b"connection"), names.count(b"content-length")) > 1
        or not (length.isdigit() and len(length) <= _MAX_DIGITS)
    ):
        return None
    path, _, query = request.split(b" ")[1].partition(b"?")
    request_id = next((value for name, value in headers if name == RAW_HEADER), b"")  # the first, as in the app
    return PlainHead(path.decode(), query, tuple(headers), request_id.decode("latin-1"), len(head), int(length))


def mask_upgrade(part: memoryview) -> None:
    """Renames the Upgrade header of a head in place, since the parser would stop there.

    Java's client and curl send it along with a body. A server may ignore it (RFC 9110, section 7.8).
    """
    end = _END.search(part)
    for upgrade in _UPGRADE.finditer(part, 0, end.start() if end else len(part)):
        part[upgrade.start(1) : upgrade.end(1)] = b"offered"
