import pytest
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers

from app.requests.parameters import Parameters, build_parameters_reader
from app.settings import Settings

read_parameters = build_parameters_reader(Settings(timeout_seconds=30.0, limit=7))


def read(query: bytes, header: str | None) -> Parameters:
    headers = {"Host": "x"} if header is None else {"Host": "x", "X-Request-Timeout": header}
    return read_parameters(query, Headers(headers))


@pytest.mark.parametrize(
    ("query", "header", "model", "seconds"),
    [
        (b"", None, None, 30.0),
        (b"", "", None, 30.0),
        (b"model=day&timeout=2.5", None, "day", 2.5),
        (b"timeout=2", "9", None, 2.0),
        (b"threshold=0.5", "9", None, 9.0),
        (b"model=%ff", None, "\ufffd", 30.0),
    ],
)
def test_parameters_are_read_from_query_and_header(
    query: bytes, header: str | None, model: str | None, seconds: float
) -> None:
    parameters = read(query, header)
    assert (parameters.model, parameters.timeout, parameters.limit) == (model, seconds, 7)


def test_repeated_labels_are_a_list() -> None:
    assert read(b"labels=dog&labels=cat,cow", None).labels == ["dog", "cat,cow"]


@pytest.mark.parametrize(
    ("query", "header"),
    [
        (b"timeout=soon", None),
        (b"timeout=1&timeout=1", None),
        (b"timeout=nan", None),
        (b"timeout=-1", None),
        (b"\xff=&;%", "inf"),
        (b"limit=0", None),
    ],
)
def test_invalid_parameters_are_refused_every_time(query: bytes, header: str | None) -> None:
    for _ in range(2):
        with pytest.raises(RequestValidationError):
            read(query, header)
