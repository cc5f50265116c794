"""A thread of this process without CAP_LINUX_IMMUTABLE, as a daemon may be run."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from backends.system import libc

Result = TypeVar("Result")
_LINUX_IMMUTABLE = 9


def _drop() -> None:
    status = Path("/proc/thread-self/status").read_text()
    (effective,) = re.findall(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    bits = int(effective, 16) & ~(1 << _LINUX_IMMUTABLE)
    libc.set_capabilities([each for each in range(64) if bits >> each & 1])


def incapable(call: Callable[[], Result]) -> Result:
    """Return what *call* returns where flags of `chattr +i` cannot be cleared."""
    with ThreadPoolExecutor(1, initializer=_drop) as threads:
        return threads.submit(call).result()
