"""The container's memory limit."""

import contextlib
import os
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


def read_memory_limit(cgroups: Path = _CGROUPS) -> int | None:
    """Returns the cgroup's limit in bytes; None if there is none, or if it is not below the machine's memory."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # cgroup v2, v1
        with contextlib.suppress(OSError, ValueError):
            limit = int((cgroups / name).read_text())
            machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
            return limit if limit < machine else None  # without a limit, cgroup v1 has a number near 2^63
    return None
