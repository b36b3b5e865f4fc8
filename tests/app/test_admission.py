import pytest

from app.inference.admission import Admission, Overloaded, Stopped


def build(capacity: int = 4) -> Admission:
    return Admission(capacity, lambda: None)


def test_full_queue_is_refused() -> None:
    admission = build(capacity=3)
    with admission.admit(), admission.admit(2):
        with pytest.raises(Overloaded) as caught, admission.admit():
            pass
        assert caught.value.retry_after_seconds == 1
    assert admission.in_flight == 0
    with admission.admit(3):
        pass


def test_request_that_would_wait_too_long_is_refused() -> None:
    admission = build()
    admission.record_service_time(20.0)  # 2 s by the moving average
    with admission.admit():
        with pytest.raises(Overloaded) as caught, admission.admit(timeout_seconds=3.9):
            pass
        assert caught.value.retry_after_seconds == 2
        with admission.admit(timeout_seconds=4.1):
            pass
    with admission.admit(2, timeout_seconds=0.001):  # the queue is empty, so there is no wait
        pass
    admission.record_service_time(5000.0)
    with admission.admit(), pytest.raises(Overloaded) as caught, admission.admit(timeout_seconds=30):
        pass
    assert caught.value.retry_after_seconds == 60  # clients give up on longer ones


def test_arrivals_are_counted_from_when_half_of_the_slots_are_taken() -> None:
    admission = build()
    for _ in range(9):
        admission.announce()  # nothing is in flight
    with admission.admit(2), pytest.raises(Overloaded):
        admission.announce()


def test_each_arrival_is_counted_once() -> None:
    admission = build()
    with admission.admit(2), admission.expect() as first:
        with admission.expect(), pytest.raises(Overloaded), admission.expect():
            pass
        with admission.expect(arrival=admission.announce()), pytest.raises(Overloaded):
            admission.announce()
        admission.announce().end()
        with admission.admit(arrival=first), admission.expect(), pytest.raises(Overloaded):  # the first has its slot
            admission.announce()


def test_arrivals_count_towards_the_expected_wait() -> None:
    admission = build(capacity=100)
    admission.record_service_time(1.0)  # 0.1 s by the moving average
    with admission.admit(50):
        arrival = admission.announce(timeout_seconds=10.0)
        with pytest.raises(Overloaded):
            admission.announce(timeout_seconds=10.0)
        with admission.admit(timeout_seconds=10.0, arrival=arrival):  # announced, and so admitted
            pass


def test_slow_upload_does_not_block_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.inference.admission._ARRIVAL_SECONDS", 0.0)
    admission = build()
    with admission.admit(2), admission.expect(), admission.expect(), admission.expect():
        admission.announce()
        with admission.admit(2):
            pass


def test_closed_admission_raises_stopped() -> None:
    admission = build()
    admission.closed = True
    with pytest.raises(Stopped), admission.admit():
        pass
    with pytest.raises(Stopped), admission.expect():
        pass


def test_retirement_waits_for_requests_in_progress() -> None:
    ended: list[int] = []
    admission = Admission(4, lambda: ended.append(1))
    with admission.expect() as arrival:
        with admission.admit(arrival=arrival):
            admission.retire()
        assert not ended
    assert ended == [1]
