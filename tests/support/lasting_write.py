"""A write that lasts: it waits for its own bytes. Source: userfaultfd(2)."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

# Source: include/uapi/linux/userfaultfd.h; arch/x86/entry/syscalls, asm-generic.
_USERFAULTFD = {"x86_64": 323, "aarch64": 282}[os.uname().machine]
_API, _REGISTER, _COPY = 0xC018_AA3F, 0xC020_AA00, 0xC028_AA03
_API_VERSION, _MISSING = 0xAA, 1


@contextmanager
def lasting_write(
    file: Path, at: int, content: bytes, *, flags: int
) -> Iterator[Callable[[], None]]:
    """Write a page at *at*, which waits until what this yields is called."""
    handler = ctypes.CDLL(None, use_errno=True).syscall(_USERFAULTFD, os.O_CLOEXEC)
    assert handler >= 0, os.strerror(ctypes.get_errno())
    fcntl.ioctl(handler, _API, struct.pack("=QQQ", _API_VERSION, 0, 0))
    page = mmap.mmap(-1, mmap.PAGESIZE)
    place = ctypes.addressof(ctypes.c_char.from_buffer(page))
    region = struct.pack("=QQQQ", place, mmap.PAGESIZE, _MISSING, 0)
    fcntl.ioctl(handler, _REGISTER, region)
    source = ctypes.create_string_buffer(content, mmap.PAGESIZE)

    def go_on() -> None:
        addresses = place, ctypes.addressof(source), mmap.PAGESIZE
        fcntl.ioctl(handler, _COPY, struct.pack("=QQQQq", *addresses, 0, 0))

    descriptor = os.open(file, os.O_WRONLY | flags)
    writer = threading.Thread(target=os.pwrite, args=(descriptor, page, at))
    before = os.fstat(descriptor).st_ctime_ns
    writer.start()
    try:
        while os.fstat(descriptor).st_ctime_ns == before:
            time.sleep(0.01)
        yield go_on
        writer.join(10)
        assert not writer.is_alive()
    finally:
        os.close(handler)  # who waits still gets zeros
        writer.join(10)
        os.close(descriptor)
