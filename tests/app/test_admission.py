import pytest

from app.admission import Admission, Overloaded, Stopped


def build(places: int = 4) -> Admission:
    return Admission(places, lambda: None)


def test_no_more_are_let_in_than_there_are_places() -> None:
    admission = build(places=3)
    with admission.admit(), admission.admit(2):
        with pytest.raises(Overloaded) as caught, admission.admit():
            pass
        assert caught.value.retry_after_seconds == 1
    assert admission.taken == 0
    with admission.admit(3):
        pass


def test_nobody_is_let_in_who_would_wait_too_long() -> None:
    admission = build()
    admission.note_pace(20.0)  # 2 s by the moving average
    with admission.admit():
        with pytest.raises(Overloaded) as caught, admission.admit(patience_seconds=3.9):
            pass
        assert caught.value.retry_after_seconds == 2
        with admission.admit(patience_seconds=4.1):
            pass
    with admission.admit(2, patience_seconds=0.001):  # who finds it empty does not wait
        pass


def test_what_arrives_is_counted_on_where_half_of_the_places_are_taken() -> None:
    admission = build()
    for _ in range(9):
        admission.announce()  # nothing else is in hand
    with admission.admit(2), pytest.raises(Overloaded):
        admission.announce()


def test_what_arrives_is_counted_once() -> None:
    admission = build()
    with admission.admit(2), admission.expect() as first:
        with admission.expect(), pytest.raises(Overloaded), admission.expect():
            pass
        with admission.expect(arrival=admission.announce()), pytest.raises(Overloaded):
            admission.announce()
        admission.announce().end()
        with admission.admit(arrival=first), admission.expect(), pytest.raises(Overloaded):  # first has its place
            admission.announce()


def test_what_arrives_counts_for_the_wait() -> None:
    admission = build(places=100)
    admission.note_pace(1.0)  # 0.1 s by the moving average
    with admission.admit(50):
        arrival = admission.announce(patience_seconds=10.0)
        with pytest.raises(Overloaded):
            admission.announce(patience_seconds=10.0)
        with admission.admit(patience_seconds=10.0, arrival=arrival):  # what was let come is let in
            pass


def test_what_is_slow_to_arrive_keeps_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.admission._ARRIVAL_SECONDS", 0.0)
    admission = build()
    with admission.admit(2), admission.expect(), admission.expect(), admission.expect():
        admission.announce()
        with admission.admit(2):
            pass


def test_nobody_is_let_in_after_the_end() -> None:
    admission = build()
    admission.closed = True
    with pytest.raises(Stopped), admission.admit():
        pass
    with pytest.raises(Stopped), admission.expect():
        pass


def test_retirement_waits_for_who_is_here() -> None:
    ended: list[int] = []
    admission = Admission(4, lambda: ended.append(1))
    with admission.expect() as arrival:
        with admission.admit(arrival=arrival):
            admission.retire()
        assert not ended
    assert ended == [1]
