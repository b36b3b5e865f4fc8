"""How the log is written: plain lines or JSON, each with the id of the request that it is about."""

import logging
from typing import Literal

from pythonjsonlogger.json import JsonFormatter

from app.request_id import get_request_id

LogFormat = Literal["plain", "json"]

_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), 127)}


class PlainFormatter(logging.Formatter):
    """Lines to read. What clients send cannot begin a line of its own in them."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s [%(request_id)s] %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name
        """Returns one line; a traceback follows it."""
        return super().formatMessage(record).translate(_CONTROLS)


def set_up_logging(level: str, log_format: LogFormat) -> None:
    """Sends everything of `level` and above to the standard error stream."""

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
