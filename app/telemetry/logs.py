"""Logging as plain text or JSON lines, each with the id of the current request."""

import logging
from typing import Literal

from pythonjsonlogger.json import JsonFormatter

from app.telemetry.request_id import get_request_id

LogFormat = Literal["plain", "json"]

_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), 127)}


class PlainFormatter(logging.Formatter):
    """Formats plain-text lines and escapes control characters, so that clients cannot inject log lines."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s [%(request_id)s] %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name
        """Returns the message as one line; a traceback is appended after it."""
        return super().formatMessage(record).translate(_CONTROLS)


def set_up_logging(level: str, log_format: LogFormat) -> None:
    """Logs everything of `level` and above to standard error."""

    def add_request_id(record: logging.LogRecord) -> bool:
        record.request_id = get_request_id() or "-"
        return True

    handler = logging.StreamHandler()
    handler.addFilter(add_request_id)
    handler.setFormatter(
        PlainFormatter()
        if log_format == "plain"
        else JsonFormatter(
            ["levelname", "name", "request_id", "message"],
            rename_fields={"levelname": "level", "name": "logger", "exc_info": "exception"},
            timestamp="time",
        )
    )
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(level.upper())
    logging.getLogger("uvicorn.error").setLevel(max(logging.WARNING, root.level))
