import asyncio

import pytest

from app.admission import Overloaded
from app.connections.door import Door, read_plain_head

HEAD = b"POST /detect?limit=5 HTTP/1.1\r\nHost: x\r\nContent-Length:  12 \r\nConnection: Keep-Alive\r\n\r\n"


def test_plain_head_is_read() -> None:
    sent = b"before" + HEAD + b"body"
    head = read_plain_head(sent, 6, len(sent))
    assert head and (head.path, head.query, head.size, head.body_size) == ("/detect", b"limit=5", len(HEAD), 12)
    assert head.headers == ((b"host", b"x"), (b"content-length", b"12"), (b"connection", b"Keep-Alive"))
    assert read_plain_head(sent, 6, 6 + len(HEAD) - 1) is None  # it has not all come, or is longer than allowed


def test_body_without_length_is_empty() -> None:
    head = read_plain_head(b"POST / HTTP/1.1\r\n\r\n", 0, 100)
    assert head and (head.body_size, head.query, head.headers) == (0, b"", ())


def test_first_request_id_counts() -> None:
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
        b"Content-Length: 12",  # once more
        b"Connection: keep-alive",  # once more
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
def test_odd_lengths_are_left_to_the_parser(length: bytes) -> None:
    assert read_plain_head(b"POST / HTTP/1.1\r\nContent-Length: %b\r\n\r\n" % length, 0, 1000) is None


@pytest.mark.parametrize("line", [b"GET / HTTP/1.1", b"POST / HTTP/1.0", b"POST http://x/ HTTP/1.1"])
def test_other_request_lines_are_left_to_the_parser(line: bytes) -> None:
    assert read_plain_head(line + b"\r\nHost: x\r\n\r\n", 0, 1000) is None


class HeldClient:
    def __init__(self, door: Door, asks_again: bool = False) -> None:
        self.door = door
        self.asks_again = asks_again
        self.awaited = 1
        self.events: list[str] = []
        self.heard = asyncio.Event()

    def send_answer(self) -> None:
        self.events.append("answer")

    def await_bytes(self, least: int) -> None:
        self.awaited = least

    def hear(self) -> None:
        self.events.append("hear")
        self.heard.set()
        if self.asks_again:
            self.door.hold(self, 1000)

    def release(self) -> None:
        self.events.append("release")


@pytest.mark.anyio
async def test_who_was_sent_away_is_heard_with_the_others() -> None:
    door = Door([], lambda query, headers: None)
    early, late, answered, again = (HeldClient(door, number == 3) for number in range(4))
    door.hold_too(early)  # nobody is held
    assert early.awaited == 1
    door.hold(late, 0)
    door.hold(again, 1000)  # it is heard with the first
    door.hold_too(answered)
    assert min(client.awaited for client in (late, again, answered)) > 1
    async with asyncio.timeout(30):
        await answered.heard.wait()  # the last
    assert (early.events, late.events, answered.events) == ([], ["hear", "release"], ["hear", "release"])
    assert (late.awaited, answered.awaited) == (1, 1)
    assert again.events == ["hear"]
    assert again.awaited > 1


@pytest.mark.anyio
async def test_who_asks_the_same_at_once_is_told_the_same() -> None:
    asked = []

    def announce(query: bytes, headers: object) -> None:
        asked.append(query)
        raise Overloaded(len(asked))

    door = Door(["/detect"], announce)
    heads = [read_plain_head(b"POST %b HTTP/1.1\r\n\r\n" % target, 0, 100) for target in (b"/detect", b"/detect?a")]
    other = read_plain_head(b"POST /other HTTP/1.1\r\n\r\n", 0, 100)
    waits = []
    for _ in range(2):
        for head in heads * 2:
            assert head
            with pytest.raises(Overloaded) as raised:
                door.ask(head)
            waits.append(raised.value.wait_seconds)
        await asyncio.sleep(0)
    assert waits == [1, 2, 1, 2, 3, 4, 3, 4]
    assert asked == [b"", b"a"] * 2
    assert other
    assert door.ask(other) is None


@pytest.mark.anyio
async def test_answers_are_sent_together() -> None:
    door = Door([], lambda query, headers: None)
    clients = [HeldClient(door) for _ in range(3)]
    for client in clients:
        door.send_soon(client)
        assert client.events == []
    await asyncio.sleep(0)
    assert [client.events for client in clients] == [["answer"]] * 3
