import pytest

from app.parameters import glance


@pytest.mark.parametrize(
    ("query", "header", "model", "seconds"),
    [
        (b"", b"", None, 30.0),
        (b"model=day&timeout=2.5", b"", "day", 2.5),
        (b"timeout=1&timeout=2", b"9", None, 2.0),
        (b"threshold=0.5", b"9", None, 9.0),
        (b"timeout=soon", b"", None, 30.0),  # what is wrong is for the app to say
        (b"timeout=nan", b"", None, 30.0),
        (b"timeout=-1&model=%ff", b"", "\ufffd", 30.0),
        (b"\xff=&;%", b"inf", None, 30.0),
    ],
)
def test_what_a_request_seems_to_ask_for(query: bytes, header: bytes, model: str | None, seconds: float) -> None:
    headers = ((b"host", b"x"), (b"x-request-timeout", header))
    assert glance(query, headers, 30.0) == (model, seconds)
