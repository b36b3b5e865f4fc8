"""Blocks that are ended from outside, and what else may happen to their task meanwhile."""

import asyncio

import pytest

from app.interruption import Interruption, cancelled_after, cancelled_by

pytestmark = pytest.mark.anyio


class Due(Exception):
    """The block's time is up."""


class Gone(Exception):
    """Who waited has gone."""


async def test_block_is_ended_by_time() -> None:
    with pytest.raises(Due), cancelled_after(0.01, Due()):
        await asyncio.sleep(30)


async def test_block_is_ended_by_a_future() -> None:
    event = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(event.set_result, None)
    with pytest.raises(Gone), cancelled_by(event, Gone()):
        await asyncio.sleep(30)


async def test_block_is_ended_by_what_was_done_before() -> None:
    event = asyncio.get_running_loop().create_future()
    event.set_result(None)
    with pytest.raises(Gone), cancelled_by(event, Gone()):
        await asyncio.sleep(30)


async def test_what_ends_in_time_is_left_alone() -> None:
    event = asyncio.get_running_loop().create_future()
    with cancelled_after(0.01, Due()), cancelled_by(event, Gone()):
        await asyncio.sleep(0)
    event.set_result(None)
    await asyncio.sleep(0.05)


async def test_what_has_ended_cannot_be_ended_any_more() -> None:
    event = asyncio.get_running_loop().create_future()
    with cancelled_by(event, Gone()):
        event.set_result(None)  # its callbacks are on their way
    await asyncio.sleep(0.01)


async def test_of_two_that_end_at_once_the_outer_one_says_why() -> None:
    with pytest.raises(Due), Interruption(Due()) as outer, Interruption(Gone()) as inner:
        asyncio.get_running_loop().call_soon(inner.end)
        asyncio.get_running_loop().call_soon(outer.end)
        await asyncio.sleep(30)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_own_faults_of_a_block_are_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError), Interruption(Due()) as block:
        asyncio.get_running_loop().call_soon(block.end)
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            _ = 1 // 0


async def test_a_task_that_is_cancelled_is_cancelled() -> None:
    async def work() -> None:
        with cancelled_after(30, Due()):
            await asyncio.sleep(30)

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
