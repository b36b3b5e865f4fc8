"""How much memory this process may use."""

import contextlib
import os
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


def read_memory_limit(cgroups: Path = _CGROUPS) -> int | None:
    """Returns the container's limit in bytes; None where there is none, or the machine has no more."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # cgroups 2, cgroups 1
        with contextlib.suppress(OSError, ValueError):
            limit = int((cgroups / name).read_text())
            machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
            return limit if limit < machine else None  # cgroups 1 says none by a number near 2^63
    return None
