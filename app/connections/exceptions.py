"""Why a connection refuses a request that the app has not seen."""


class InvalidRequest(Exception):
    """What the client sent is not valid HTTP."""


class HeadTooLarge(Exception):
    """The request line and headers, or the framing of a body, have more bytes than allowed."""


class SlowHead(Exception):
    """The request line and headers took too long to arrive."""


class TooManyConnections(Exception):
    """The connection limit is reached; `retry_after_seconds` is when a connection should be free."""

    def __init__(self, retry_after_seconds: int) -> None:
        super().__init__(f"all connections are taken; try again in {retry_after_seconds} s")
        self.retry_after_seconds = retry_after_seconds
