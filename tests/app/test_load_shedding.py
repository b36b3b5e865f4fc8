import asyncio

import pytest

from app.connections.load_shedding import LoadShedder
from app.connections.request_head import read_plain_head
from app.inference.admission import Overloaded


class PausedClient:
    def __init__(self, shedder: LoadShedder, is_refused_again: bool = False) -> None:
        self.shedder = shedder
        self.is_refused_again = is_refused_again
        self.low_water_mark = 1
        self.events: list[str] = []
        self.was_read = asyncio.Event()

    def flush_refusal(self) -> None:
        self.events.append("answer")

    def set_low_water_mark(self, min_bytes: int) -> None:
        self.low_water_mark = min_bytes

    def read_available(self) -> None:
        self.events.append("read")
        self.was_read.set()
        if self.is_refused_again:
            self.shedder.pause(self, 1000)


@pytest.mark.anyio
async def test_paused_clients_are_read_together() -> None:
    shedder = LoadShedder([], lambda query, headers: None)
    early, late, answered, again = (PausedClient(shedder, number == 3) for number in range(4))
    shedder.pause_with_others(early)  # none is paused
    assert early.low_water_mark == 1
    shedder.pause(late, 0)
    shedder.pause(again, 1000)  # read together with the first
    shedder.pause_with_others(answered)
    assert min(client.low_water_mark for client in (late, again, answered)) > 1
    async with asyncio.timeout(30):
        await answered.was_read.wait()  # the last to be read
    assert (early.events, late.events, answered.events) == ([], ["read"], ["read"])
    assert (late.low_water_mark, answered.low_water_mark) == (1, 1)
    assert again.events == ["read"]
    assert again.low_water_mark > 1


@pytest.mark.anyio
async def test_equal_heads_in_one_iteration_of_the_event_loop_are_announced_once() -> None:
    asked = []

    def announce(query: bytes, headers: object) -> None:
        asked.append(query)
        raise Overloaded(len(asked))

    shedder = LoadShedder(["/detect"], announce)
    heads = [read_plain_head(b"POST %b HTTP/1.1\r\n\r\n" % target, 0, 100) for target in (b"/detect", b"/detect?a")]
    other = read_plain_head(b"POST /other HTTP/1.1\r\n\r\n", 0, 100)
    waits = []
    for _ in range(2):
        for head in heads * 2:
            assert head
            with pytest.raises(Overloaded) as raised:
                shedder.announce(head)
            waits.append(raised.value.wait_seconds)
        await asyncio.sleep(0)
    assert waits == [1, 2, 1, 2, 3, 4, 3, 4]
    assert asked == [b"", b"a"] * 2
    assert other
    assert shedder.announce(other) is None


@pytest.mark.anyio
async def test_refusals_are_sent_together() -> None:
    shedder = LoadShedder([], lambda query, headers: None)
    clients = [PausedClient(shedder) for _ in range(3)]
    for client in clients:
        shedder.flush_soon(client)
        assert client.events == []
    await asyncio.sleep(0)
    assert [client.events for client in clients] == [["answer"]] * 3
