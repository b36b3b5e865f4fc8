"""Rate limiting per client."""

import functools
import ipaddress
import math

from aiolimiter import AsyncLimiter

_MAX_CLIENTS = 10_000  # least recently seen ones are forgotten; each takes some 400 bytes


class RateLimited(Exception):
    """The client sent too many requests; `retry_after_seconds` is when it should try again."""

    def __init__(self, per_minute: int) -> None:
        self.retry_after_seconds = math.ceil(60 / per_minute)
        super().__init__(f"{per_minute} requests a minute are allowed; try again in {self.retry_after_seconds} s")


class RateLimit:
    """A leaky bucket per client: a burst of up to `per_minute` requests, then one every 60 / `per_minute` seconds."""

    def __init__(self, per_minute: int) -> None:
        self._per_minute = per_minute
        self._get_limiter = functools.lru_cache(_MAX_CLIENTS)(lambda client: AsyncLimiter(per_minute))

    async def count(self, client: object) -> None:
        """Counts one request of a client; raises `RateLimited`."""
        limiter = self._get_limiter(client)
        if not limiter.has_capacity():
            raise RateLimited(self._per_minute)
        await limiter.acquire()  # does not wait: there is capacity


def find_network(host: str) -> str:
    """Returns the client behind an address: the address itself, for IPv6 its /64 network, which one customer has."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:  # not an IP address, as over a Unix socket
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return host
    return str(address.ipv4_mapped or ipaddress.IPv6Network((int(address) >> 64 << 64, 64)))
