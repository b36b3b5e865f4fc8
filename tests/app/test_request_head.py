import pytest

from app.connections.request_head import mask_upgrade, read_plain_head

HEAD = b"POST /detect?limit=5 HTTP/1.1\r\nHost: x\r\nContent-Length:  12 \r\nConnection: Keep-Alive\r\n\r\n"


def test_plain_head_is_read() -> None:
    sent = b"before" + HEAD + b"body"
    head = read_plain_head(sent, 6, len(sent))
    assert head and (head.path, head.query, head.size, head.body_size) == ("/detect", b"limit=5", len(HEAD), 12)
    assert head.headers == ((b"host", b"x"), (b"content-length", b"12"), (b"connection", b"Keep-Alive"))
    assert read_plain_head(sent, 6, 6 + len(HEAD) - 1) is None  # incomplete, or longer than allowed


def test_body_without_length_is_empty() -> None:
    head = read_plain_head(b"POST / HTTP/1.1\r\n\r\n", 0, 100)
    assert head and (head.body_size, head.query, head.headers) == (0, b"", ())


def test_first_of_two_request_ids_is_used() -> None:
    head = read_plain_head(HEAD[:-2] + b"X-Request-ID: one\r\nx-request-id: two\r\n\r\n", 0, 1000)
    assert head and head.request_id == "one"


@pytest.mark.parametrize(
    "line",
    [
        b"Transfer-Encoding: chunked",
        b"Expect: 100-continue",
        b"Upgrade: h2c",
        b"Origin: https://else.where",
        b"Connection: close",
        b"Connection: keep-alive, upgrade",
        b"Content-Length: 12",  # repeated
        b"Connection: keep-alive",  # repeated
        b" folded",
        b"Transfer-Encoding : chunked",
        b"no colon",
        b"a: \0",
        b"a: b\nTransfer-Encoding: chunked",
    ],
)
def test_other_heads_are_left_to_the_parser(line: bytes) -> None:
    assert read_plain_head(HEAD[:-2] + line + b"\r\n\r\n", 0, 1000) is None


@pytest.mark.parametrize("length", [b"-1", b"+1", b"1_0", b"0x1", b"", b"1 2", b"1" * 19])
def test_unusual_lengths_are_left_to_the_parser(length: bytes) -> None:
    assert read_plain_head(b"POST / HTTP/1.1\r\nContent-Length: %b\r\n\r\n" % length, 0, 1000) is None


@pytest.mark.parametrize("line", [b"GET / HTTP/1.1", b"POST / HTTP/1.0", b"POST http://x/ HTTP/1.1"])
def test_other_request_lines_are_left_to_the_parser(line: bytes) -> None:
    assert read_plain_head(line + b"\r\nHost: x\r\n\r\n", 0, 1000) is None


def test_upgrade_outside_the_header_names_is_not_masked() -> None:
    for data in (b"POST / HTTP/1.1\r\nHost: x\r\n\r\n\r\nUpgrade: x", b"GET / HTTP/1.1\r\nA: b\r\n Upgrade: c\r\n"):
        part = bytearray(data)
        mask_upgrade(memoryview(part))
        assert part == data
