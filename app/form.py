"""Takes the files out of a multipart form as it arrives, in memory: its caller has bounded the body."""

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

_MAX_PARTS = 20  # fields beside the file are ignored; some clients send their settings along


class InvalidForm(Exception):
    """The form cannot be read, or holds not exactly one file."""


class Form:
    """A form in the making: `write` its body piece by piece, then `read_file`. Raises `InvalidForm`."""

    def __init__(self, content_type: str) -> None:
        _, options = parse_options_header(content_type)
        if not options.get(b"boundary"):
            raise InvalidForm("the content type names no boundary")
        self._parts = 0
        self._files: list[bytearray] = []
        self._file: bytearray | None = None  # None inside a part that is no file
        self._header_name = self._header_value = b""
        self._complete = False
        self._parser = MultipartParser(
            options[b"boundary"],
            {
                "on_part_begin": self._begin_part,
                "on_header_field": self._take_header_name,
                "on_header_value": self._take_header_value,
                "on_header_end": self._end_header,
                "on_part_data": self._take_data,
                "on_end": self._end,
            },
        )

    def write(self, chunk: bytes) -> None:
        """Reads on."""
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise InvalidForm(f"the form cannot be read: {error}") from error

    def read_file(self) -> bytes:
        """Returns the one file's bytes; a part is a file if it has a file name, whatever its own name."""
        if not self._complete:
            raise InvalidForm("the form is cut short")
        if len(self._files) != 1:
            raise InvalidForm(f"the form holds {len(self._files) or 'no'} files: send one, with a file name")
        return bytes(self._files[0])

    def _begin_part(self) -> None:
        self._parts += 1
        if self._parts > _MAX_PARTS:
            raise InvalidForm(f"the form has more than {_MAX_PARTS} parts")
        self._file = None

    def _take_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _take_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _end_header(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            _, options = parse_options_header(self._header_value)
            if b"filename" in options:
                self._file = bytearray()
                self._files.append(self._file)
        self._header_name = self._header_value = b""

    def _take_data(self, data: bytes, start: int, end: int) -> None:
        if self._file is not None:
            self._file += memoryview(data)[start:end]

    def _end(self) -> None:
        self._complete = True
