"""Cancel scopes, alone, nested, and with other cancellations and errors of their task."""

import asyncio

import pytest

from app.requests.interruption import Interruption, cancelled_after, cancelled_by

pytestmark = pytest.mark.anyio


class TimedOut(Exception):
    """The block timed out."""


class Disconnected(Exception):
    """The client has disconnected."""


async def test_block_is_cancelled_by_timer() -> None:
    with pytest.raises(TimedOut), cancelled_after(0.01, TimedOut()):
        await asyncio.sleep(30)


async def test_block_is_cancelled_by_future() -> None:
    event = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(event.set_result, None)
    with pytest.raises(Disconnected), cancelled_by(event, Disconnected()):
        await asyncio.sleep(30)


async def test_block_is_cancelled_by_future_that_is_already_done() -> None:
    event = asyncio.get_running_loop().create_future()
    event.set_result(None)
    with pytest.raises(Disconnected), cancelled_by(event, Disconnected()):
        await asyncio.sleep(30)


async def test_block_that_ends_in_time_is_not_cancelled() -> None:
    event = asyncio.get_running_loop().create_future()
    with cancelled_after(0.01, TimedOut()), cancelled_by(event, Disconnected()):
        await asyncio.sleep(0)
    event.set_result(None)
    await asyncio.sleep(0.05)


async def test_block_that_has_ended_cannot_be_cancelled() -> None:
    event = asyncio.get_running_loop().create_future()
    with cancelled_by(event, Disconnected()):
        event.set_result(None)  # its callbacks are scheduled
    await asyncio.sleep(0.01)


async def test_outer_error_wins_where_two_scopes_are_cancelled_at_once() -> None:
    with pytest.raises(TimedOut), Interruption(TimedOut()) as outer, Interruption(Disconnected()) as inner:
        asyncio.get_running_loop().call_soon(inner.end)
        asyncio.get_running_loop().call_soon(outer.end)
        await asyncio.sleep(30)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_error_of_the_block_itself_is_raised() -> None:
    with pytest.raises(ZeroDivisionError), Interruption(TimedOut()) as block:
        asyncio.get_running_loop().call_soon(block.end)
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            _ = 1 // 0


async def test_cancellation_of_the_task_passes_through() -> None:
    async def work() -> None:
        with cancelled_after(30, TimedOut()):
            await asyncio.sleep(30)

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
