import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import pytest

from app.inference.admission import Overloaded, Stopped
from app.inference.batcher import Batcher, InferenceFailed, Served
from app.telemetry.request_id import get_request_id, request_id_context
from model.image import BrokenImage
from tests.app.client import until

pytestmark = pytest.mark.anyio


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that `time.perf_counter` returns, which stands still unless a test changes it."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


class Doubling:
    """Doubles numbers and records every batch; blocks while its gate is cleared, and raises for a negative number."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.batches: list[list[int]] = []
        self.alone: list[bool] = []
        self.begun = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def __call__(self, items: Sequence[int], is_alone: bool) -> list[int]:
        self.batches.append(list(items))
        self.alone.append(is_alone)
        self._loop.call_soon_threadsafe(self.begun.set)
        assert self.gate.wait(30)
        if min(items) < 0:
            raise ValueError("negative")
        return [2 * item for item in items]


@contextlib.asynccontextmanager
async def running(
    compute: Any, max_batch: int = 4, max_queue: int = 100, instances: int = 1, **options: Any
) -> AsyncIterator[Batcher[int, int]]:
    batcher = Batcher[int, int](compute, max_queue, **options)
    task = asyncio.create_task(batcher.run(instances, max_batch))
    yield batcher
    batcher.close()
    await task
    assert (batcher.queued, batcher.admission.in_flight, batcher.running) == (0, 0, False)


async def submit(batcher: Batcher[int, int], item: int, preparers: Executor | None = None) -> Served[int]:
    with batcher.admission.admit():
        return await batcher.submit(item, preparers)


async def hold(compute: Doubling, batcher: Batcher[int, int], items: Sequence[int]) -> list[asyncio.Task[Served[int]]]:
    """Submits the items; returns once the first is being computed alone and all others are queued."""
    compute.gate.clear()
    compute.begun.clear()
    tasks = [asyncio.create_task(submit(batcher, items[0]))]
    await compute.begun.wait()
    tasks += [asyncio.create_task(submit(batcher, item)) for item in items[1:]]
    await asyncio.sleep(0)
    assert batcher.queued == len(items) - 1
    return tasks


async def test_single_item_is_computed_at_once() -> None:
    compute = Doubling()
    async with running(compute) as batcher:
        assert (await submit(batcher, 21)).result == 42
    assert compute.batches == [[21]]


async def test_items_queued_during_a_run_form_the_next_batch_in_order() -> None:
    compute = Doubling()
    async with running(compute, max_batch=4) as batcher:
        tasks = await hold(compute, batcher, range(10))
        compute.gate.set()
        assert [served.result for served in await asyncio.gather(*tasks)] == list(range(0, 20, 2))
    assert compute.batches == [[0], [1, 2, 3, 4], [5, 6, 7, 8], [9]]


async def test_queue_seconds_include_the_wait_for_the_running_batch() -> None:
    compute = Doubling()
    async with running(compute) as batcher:
        _, second = await hold(compute, batcher, [1, 2])
        queued = time.perf_counter()
        await asyncio.sleep(0)
        waited = time.perf_counter() - queued
        compute.gate.set()
        assert (await second).queue_seconds >= waited


async def test_preparation_is_no_part_of_the_queue_seconds(clock: list[float]) -> None:
    def prepare(item: int) -> int:
        clock[0] += 5
        return item

    with ThreadPoolExecutor(1) as preparers:
        async with running(Doubling(), prepare=prepare) as batcher:
            assert (await submit(batcher, 1, preparers)).queue_seconds == 0


async def test_expected_wait_is_shared_among_the_instances(clock: list[float]) -> None:
    def compute(items: Sequence[int], is_alone: bool) -> list[int]:
        clock[0] += 40
        return [*items]

    async with running(compute, instances=2) as batcher:
        await submit(batcher, 1)  # 40 s / 2 instances, 2 s by the moving average
        with batcher.admission.admit(), pytest.raises(Overloaded) as caught, batcher.admission.admit(timeout_seconds=1):
            pass
        assert caught.value.wait_seconds == 2


async def test_full_queue_is_refused() -> None:
    compute = Doubling()
    async with running(compute, max_queue=3) as batcher:
        tasks = await hold(compute, batcher, [1, 2, 3])
        with pytest.raises(Overloaded) as caught:
            await submit(batcher, 4)
        assert 1 <= caught.value.retry_after_seconds <= 60
        compute.gate.set()
        await asyncio.gather(*tasks)
        assert (await submit(batcher, 4)).result == 8


async def test_cancelled_item_is_not_computed() -> None:
    compute = Doubling()
    async with running(compute) as batcher:
        tasks = await hold(compute, batcher, [1, 2, 3])
        tasks[1].cancel()
        compute.gate.set()
        assert (await tasks[2]).result == 6
        with pytest.raises(asyncio.CancelledError):
            await tasks[1]
    assert compute.batches == [[1], [3]]


def negate(item: int) -> int:
    if item == 0:
        raise ValueError("zero")
    return -item


async def test_prepared_items_share_a_batch() -> None:
    compute = Doubling()
    with ThreadPoolExecutor(1) as preparers:
        async with running(compute, prepare=negate) as batcher:
            (first,) = await hold(compute, batcher, [1])
            tasks = [asyncio.create_task(submit(batcher, item, preparers)) for item in (-2, -3)]
            await asyncio.sleep(0)
            await asyncio.wrap_future(preparers.submit(int))  # runs once both are prepared
            compute.gate.set()
            assert [(await task).result for task in (first, *tasks)] == [2, 4, 6]
    assert compute.batches == [[1], [2, 3]]


async def test_item_that_waits_to_be_prepared_is_queued() -> None:
    gate, begun = threading.Event(), threading.Event()

    def prepare(item: int) -> int:
        begun.set()
        assert gate.wait(30)
        return item

    with ThreadPoolExecutor(1) as preparers:
        async with running(Doubling(), prepare=prepare) as batcher:
            submitted = time.perf_counter()
            tasks = [asyncio.create_task(submit(batcher, item, preparers)) for item in (1, 2)]
            await asyncio.to_thread(begun.wait)
            assert batcher.queued == 1
            held = time.perf_counter()
            await asyncio.sleep(0)
            held_seconds = time.perf_counter() - held
            gate.set()
            first, second = await asyncio.gather(*tasks)
    assert first.dequeued - submitted - first.queue_seconds >= held_seconds  # its own preparation is no wait
    assert second.queue_seconds >= held_seconds


async def test_item_that_cannot_be_prepared_fails_alone() -> None:
    compute = Doubling()
    with ThreadPoolExecutor(1) as preparers:
        async with running(compute, prepare=negate) as batcher:
            with pytest.raises(ValueError, match="zero"):
                await submit(batcher, 0, preparers)
            assert (await submit(batcher, -4, preparers)).result == 8
    assert compute.batches == [[4]]


async def test_item_cancelled_while_it_is_prepared_is_not_computed() -> None:
    compute, gate, begun, drops = Doubling(), threading.Event(), threading.Event(), list[int]()

    def prepare(item: int) -> int:
        begun.set()
        assert gate.wait(30)
        return item

    with ThreadPoolExecutor(1) as preparers:
        async with running(compute, prepare=prepare, on_drop=lambda: drops.append(1)) as batcher:
            tasks = [asyncio.create_task(submit(batcher, item, preparers)) for item in (1, 2, 3)]
            await asyncio.to_thread(begun.wait)
            tasks[0].cancel()  # being prepared
            tasks[1].cancel()  # still waits for the thread
            await asyncio.sleep(0)
            assert batcher.queued == 1
            gate.set()
            assert (await tasks[2]).result == 6
    assert compute.batches == [[3]]
    assert len(drops) == 2


async def test_item_prepared_after_the_batcher_closed_is_stopped() -> None:
    gate, begun, prepared = threading.Event(), threading.Event(), list[int]()

    def prepare(item: int) -> int:
        prepared.append(item)
        begun.set()
        assert gate.wait(30)
        return item

    with ThreadPoolExecutor(1) as preparers:
        async with running(Doubling(), prepare=prepare) as batcher:
            tasks = [asyncio.create_task(submit(batcher, item, preparers)) for item in (1, 2)]
            await asyncio.to_thread(begun.wait)
            batcher.close()
            gate.set()
            for task in tasks:
                with pytest.raises(Stopped):
                    await task
    assert prepared == [1]


async def test_batch_of_cancelled_items_is_not_run() -> None:
    compute = Doubling()
    async with running(compute) as batcher:
        tasks = await hold(compute, batcher, [1, 2])
        tasks[1].cancel()
        compute.gate.set()
        await tasks[0]
        assert (await submit(batcher, 3)).result == 6
    assert compute.batches == [[1], [3]]


async def test_item_cancelled_while_computing_does_not_affect_its_batch() -> None:
    compute = Doubling()
    async with running(compute) as batcher:
        tasks = await hold(compute, batcher, [1, 2])
        tasks[0].cancel()
        compute.gate.set()
        assert (await tasks[1]).result == 4


async def test_failing_batch_fails_only_its_own_items() -> None:
    compute = Doubling()
    async with running(compute, max_batch=2) as batcher:
        tasks = await hold(compute, batcher, [1, -2, 3, 4])
        compute.gate.set()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [Served, InferenceFailed, InferenceFailed, Served]
        assert (await submit(batcher, 5)).result == 10


async def test_missing_results_are_a_failure_not_a_hang() -> None:
    async with running(lambda items, is_alone: []) as batcher:
        with pytest.raises(InferenceFailed):
            await submit(batcher, 1)


async def test_closing_finishes_the_batch_and_stops_queued_items() -> None:
    compute = Doubling()
    async with running(compute) as batcher:
        first, second = await hold(compute, batcher, [1, 2])
        batcher.close()
        with pytest.raises(Stopped):
            await second
        compute.gate.set()
        assert (await first).result == 2
        with pytest.raises(Stopped):
            await submit(batcher, 3)


async def test_cancelled_batcher_fails_all_its_items() -> None:
    compute = Doubling()
    batcher = Batcher[int, int](compute, 10)
    task = asyncio.create_task(batcher.run(1, 4))
    tasks = await hold(compute, batcher, [1, 2])
    task.cancel()
    outcomes = await asyncio.gather(*tasks, task, return_exceptions=True)
    compute.gate.set()
    assert [type(outcome) for outcome in outcomes] == [Stopped, Stopped, asyncio.CancelledError]


async def test_items_submitted_before_the_start_are_the_first_batch() -> None:
    compute = Doubling()
    batcher = Batcher[int, int](compute, 10)
    tasks = [asyncio.create_task(submit(batcher, item)) for item in (1, 2)]
    await asyncio.sleep(0)
    runner = asyncio.create_task(batcher.run(1, 4))
    assert [served.result for served in await asyncio.gather(*tasks)] == [2, 4]
    assert compute.batches == [[1, 2]]
    batcher.close()
    await runner


async def test_items_dropped_from_the_queue_are_reported() -> None:
    compute, drops = Doubling(), []
    batcher = Batcher[int, int](compute, 10, on_drop=lambda: drops.append(1))
    runner = asyncio.create_task(batcher.run(1, 4))
    tasks = await hold(compute, batcher, [1, 2, 3, 4])
    tasks[1].cancel()
    tasks[3].cancel()
    compute.gate.set()
    assert (await tasks[2]).result == 6
    assert len(drops) == 2
    batcher.close()
    await runner


async def test_hung_batches_fail_until_the_model_recovers() -> None:
    compute = Doubling()
    batcher = Batcher[int, int](compute, 10, timeout_seconds=0.01)
    runner = asyncio.create_task(batcher.run(1, 1))
    compute.gate.clear()
    for failures in range(1, 4):
        with pytest.raises(InferenceFailed, match=r"longer than 0\.01 s"):
            await submit(batcher, 1)
        assert (batcher.failing, batcher.hanging) == (failures == 3, failures == 3)
    compute.gate.set()
    await until(lambda: not batcher.hanging)  # the hung threads end once their batches are computed
    while batcher.failing:
        with contextlib.suppress(InferenceFailed):  # a busy machine may exceed the 10 ms again
            assert (await submit(batcher, 2)).result == 4
    batcher.close()
    await runner


async def test_hung_batch_times_out_even_if_nothing_awaits_it() -> None:
    compute = Doubling()
    batcher = Batcher[int, int](compute, 10, timeout_seconds=0.05)
    runner = asyncio.create_task(batcher.run(1, 1))
    [task] = await hold(compute, batcher, [1])
    task.cancel()
    batcher.close()
    async with asyncio.timeout(30):
        await runner
    compute.gate.set()


async def test_hung_batch_is_logged_without_the_id_of_a_request(caplog: pytest.LogCaptureFixture) -> None:
    ids: list[str] = []

    def record_id(record: logging.LogRecord) -> bool:
        ids.append(get_request_id())
        return True

    compute = Doubling()
    compute.gate.clear()
    with caplog.filtering(record_id):  # type: ignore[arg-type]
        async with running(compute, timeout_seconds=0.01) as batcher:
            with request_id_context("mine"), pytest.raises(InferenceFailed, match="longer than"):
                await submit(batcher, 1)
            compute.gate.set()
    assert ids == [""]


async def test_batcher_is_failing_from_three_failures_in_a_row_until_a_success() -> None:
    async with running(Doubling()) as batcher:
        for _ in range(3):
            assert not batcher.failing
            with pytest.raises(InferenceFailed):
                await submit(batcher, -1)
        assert batcher.failing and not batcher.hanging
        await submit(batcher, 1)
        assert not batcher.failing


async def test_batch_without_a_result_is_no_success() -> None:
    def compute(items: Sequence[int], is_alone: bool) -> list[Exception]:
        if items[0] < 0:
            raise ValueError("negative")
        return [BrokenImage("broken") for _ in items]

    async with running(compute) as batcher:
        for item, error in ((-1, InferenceFailed), (-1, InferenceFailed), (-1, InferenceFailed), (1, BrokenImage)):
            with pytest.raises(error):
                await submit(batcher, item)
        assert batcher.failing


async def test_timeout_error_of_the_model_is_a_failure_not_a_hang() -> None:
    def compute(items: Sequence[int], is_alone: bool) -> list[int]:
        raise TimeoutError

    async with running(compute) as batcher:
        for _ in range(3):
            with pytest.raises(InferenceFailed, match="could not compute"):
                await submit(batcher, 1)
        assert batcher.failing and not batcher.hanging


async def test_retired_batcher_serves_admitted_items() -> None:
    compute = Doubling()
    batcher = Batcher[int, int](compute, 10)
    runner = asyncio.create_task(batcher.run(1, 4))
    with batcher.admission.admit():
        tasks = await hold(compute, batcher, [1, 2])
        batcher.admission.retire()
        compute.gate.set()
        assert [served.result for served in await asyncio.gather(*tasks)] == [2, 4]
        assert (await batcher.submit(3)).result == 6
        assert not batcher.admission.closed
    await runner
    assert batcher.admission.closed


async def test_batches_are_computed_concurrently() -> None:
    compute = Doubling()
    async with running(compute, max_batch=1, instances=3) as batcher:
        compute.gate.clear()
        tasks = [asyncio.create_task(submit(batcher, item)) for item in range(5)]
        await asyncio.sleep(0)
        await until(lambda: batcher.queued <= 2)
        assert sorted(compute.batches) == [[0], [1], [2]]
        compute.gate.set()
        assert [served.result for served in await asyncio.gather(*tasks)] == [0, 2, 4, 6, 8]


async def test_a_short_queue_is_split_among_idle_threads() -> None:
    compute = Doubling()
    batcher = Batcher[int, int](compute, 10)
    compute.gate.clear()
    tasks = [asyncio.create_task(submit(batcher, item)) for item in range(4)]
    await asyncio.sleep(0)
    runner = asyncio.create_task(batcher.run(2, 4))
    await until(lambda: not batcher.queued)
    compute.gate.set()
    await asyncio.gather(*tasks)
    assert sorted(compute.batches) == [[0, 1], [2, 3]]
    batcher.close()
    await runner


async def test_compute_is_told_whether_its_item_is_alone() -> None:
    compute = Doubling()
    async with running(compute, instances=2) as batcher:
        await submit(batcher, 1)
        tasks = await hold(compute, batcher, [2])
        tasks.append(asyncio.create_task(submit(batcher, 3)))
        await asyncio.sleep(0)
        await until(lambda: not batcher.queued)
        compute.gate.set()
        await asyncio.gather(*tasks)
    assert (compute.batches, compute.alone) == ([[1], [2], [3]], [True, True, False])


async def test_exception_among_the_results_fails_only_its_own_item() -> None:
    def compute(items: Sequence[int], is_alone: bool) -> list[int | Exception]:
        return [ValueError("odd") if item % 2 else item for item in items]

    async with running(compute) as batcher:
        outcomes = await asyncio.gather(*(submit(batcher, item) for item in range(3)), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [Served, ValueError, Served]
        assert not batcher.failing


async def test_one_hung_thread_does_not_stop_the_other() -> None:
    compute = Doubling()
    gate = threading.Event()

    def hang_at_one(items: Sequence[int], is_alone: bool) -> list[int]:
        if 1 in items:
            gate.wait(30)
        return compute(items, is_alone)

    batcher = Batcher[int, int](hang_at_one, 10, timeout_seconds=0.2)
    runner = asyncio.create_task(batcher.run(2, 1))
    hanging = asyncio.create_task(submit(batcher, 1))
    await asyncio.sleep(0)
    assert (await submit(batcher, 2)).result == 4
    with pytest.raises(InferenceFailed, match="longer than"):
        await hanging
    gate.set()
    assert (await submit(batcher, 3)).result == 6
    batcher.close()
    await runner


def find_tens(item: int) -> int:
    return item // 10


async def test_items_with_equal_keys_share_a_batch_that_starts_with_the_oldest() -> None:
    compute = Doubling()
    async with running(compute, max_batch=3, key=find_tens) as batcher:
        tasks = await hold(compute, batcher, [1, 11, 21, 12, 22, 13, 14, 31, 23])
        compute.gate.set()
        served = await asyncio.gather(*tasks)
        assert [each.result // 2 for each in served] == [1, 11, 21, 12, 22, 13, 14, 31, 23]
    assert compute.batches == [[1], [11, 12, 13], [21, 22, 23], [14], [31]]


async def test_cancelled_items_with_different_keys_are_dropped() -> None:
    compute, drops = Doubling(), []
    async with running(compute, key=find_tens, on_drop=lambda: drops.append(1)) as batcher:
        tasks = await hold(compute, batcher, [1, 11, 21, 12, 22, 13])
        tasks[1].cancel()
        tasks[4].cancel()
        compute.gate.set()
        await asyncio.wait(tasks)
    assert compute.batches == [[1], [21], [12, 13]]
    assert len(drops) == 2


async def test_item_is_not_alone_while_an_item_with_another_key_is_queued() -> None:
    compute = Doubling()
    batcher = Batcher[int, int](compute, 10, key=find_tens)
    tasks = [asyncio.create_task(submit(batcher, item)) for item in (1, 11)]
    await asyncio.sleep(0)
    runner = asyncio.create_task(batcher.run(1, 4))
    await asyncio.gather(*tasks)
    assert (compute.batches, compute.alone) == ([[1], [11]], [False, True])
    batcher.close()
    await runner
