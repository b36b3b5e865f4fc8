"""Parses multipart forms incrementally, in memory: the caller limits the body's size."""

import dataclasses
from collections.abc import Sequence

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header


class InvalidForm(Exception):
    """The form is malformed, or lacks what the route needs."""


@dataclasses.dataclass(frozen=True)
class Part:
    """One part of a form; `is_file` if it has a file name, whatever the part's own name."""

    name: str
    is_file: bool
    data: bytes


def find_text(parts: Sequence[Part], name: str) -> str | None:
    """Returns the text of the form's field of this name; None if there is no such field."""
    return next((part.data.decode(errors="replace") for part in parts if part.name == name and not part.is_file), None)


class FormParser:
    """Parses one form: `write` the body chunk by chunk, then `read_parts`. Every method raises `InvalidForm`."""

    def __init__(self, content_type: str, max_parts: int) -> None:
        _, options = parse_options_header(content_type)
        if not options.get(b"boundary"):
            raise InvalidForm("the content type has no boundary")
        self._max_parts = max_parts
        self._parts: list[Part] = []
        self._part_count = 0
        self._data = bytearray()
        self._disposition: dict[bytes, bytes] = {}
        self._header_name = self._header_value = b""
        self._complete = False
        try:
            self._parser = MultipartParser(
                options[b"boundary"],
                {
                    "on_part_begin": self._begin_part,
                    "on_header_field": self._append_header_name,
                    "on_header_value": self._append_header_value,
                    "on_header_end": self._end_header,
                    "on_part_data": self._append_data,
                    "on_part_end": self._end_part,
                    "on_end": self._end,
                },
            )
        except FormParserError as error:
            raise InvalidForm(f"the form cannot be read: {error}") from error

    def write(self, chunk: bytes) -> None:
        """Parses the next chunk of the body."""
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise InvalidForm(f"the form cannot be read: {error}") from error

    def read_parts(self) -> list[Part]:
        """Returns the parts in their order in the form."""
        if not self._complete:
            raise InvalidForm("the form is truncated")
        return self._parts

    def _begin_part(self) -> None:
        self._part_count += 1
        if self._part_count > self._max_parts:
            raise InvalidForm(f"the form has more than {self._max_parts} parts")
        self._data = bytearray()
        self._disposition = {}

    def _append_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _append_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _end_header(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            _, self._disposition = parse_options_header(self._header_value)
        self._header_name = self._header_value = b""

    def _append_data(self, data: bytes, start: int, end: int) -> None:
        self._data += memoryview(data)[start:end]

    def _end_part(self) -> None:
        name = self._disposition.get(b"name", b"").decode(errors="replace")
        self._parts.append(Part(name, b"filename" in self._disposition, bytes(self._data)))

    def _end(self) -> None:
        self._complete = True
