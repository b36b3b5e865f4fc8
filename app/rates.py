"""How often one client may come."""

import functools
import ipaddress
import math

from aiolimiter import AsyncLimiter

_REMEMBERED = 10_000  # clients, each some 400 bytes; beyond, who has been away the longest starts anew


class RateLimited(Exception):
    """The client came too often; `retry_after_seconds` is when to come again."""

    def __init__(self, per_minute: int) -> None:
        self.retry_after_seconds = math.ceil(60 / per_minute)
        super().__init__(f"{per_minute} requests a minute are allowed; try again in {self.retry_after_seconds} s")


class RateLimit:
    """Lets each client in so many times a minute: at first at once, then as a leaky bucket empties."""

    def __init__(self, per_minute: int) -> None:
        self._per_minute = per_minute
        self._find = functools.lru_cache(_REMEMBERED)(lambda client: AsyncLimiter(per_minute))

    async def count(self, client: object) -> None:
        """Counts one request of a client; raises `RateLimited`."""
        limiter = self._find(client)
        if not limiter.has_capacity():
            raise RateLimited(self._per_minute)
        await limiter.acquire()  # at once


def find_network(host: str) -> str:
    """Returns who is behind an address: itself, but for IPv6 its first 64 bits, which are one customer's."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:  # no address, where the server is reached by other means
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return host
    return str(address.ipv4_mapped or ipaddress.IPv6Network((int(address) >> 64 << 64, 64)))
