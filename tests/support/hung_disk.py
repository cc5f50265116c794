"""
A filesystem that answers nothing: a disk that hangs, for reads as well.

Run in the mount namespace of a node, it is mounted on a directory until it is killed.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.protocol.node import Node, wait_until

# Source: include/uapi/linux/fuse.h; the kernel waits for an answer to FUSE_INIT.
_REQUEST: Final = struct.Struct("=IIQ")
_ANSWER: Final = struct.Struct("=IiQ")
_INIT: Final = struct.pack("=IIIIHHIIHHI28x", 7, 31, 4096, 0, 16, 12, 4096, 1, 1, 0, 0)
_READ_SIZE: Final = 1 << 17


@contextmanager
def hung(node: Node, at: Path | None = None) -> Iterator[None]:
    """Have the disk of *node*'s pool, or what is *at*, hang; then it gives errors."""
    up = node.directory / "hung"
    process = node.popen([sys.executable, __file__, str(at or node.pool), str(up)])
    try:
        wait_until(up.exists, "the disk hangs")
        yield
    finally:
        process.kill()
        process.wait()


def _main(target: str, up: str) -> None:
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"hung", os.fsencode(target), b"fuse", 0, options.encode()):
        raise OSError(ctypes.get_errno(), "mount")
    _, _, unique = _REQUEST.unpack_from(os.read(device, _READ_SIZE))
    os.write(device, _ANSWER.pack(_ANSWER.size + len(_INIT), 0, unique) + _INIT)
    Path(up).touch()
    signal.pause()


if __name__ == "__main__":
    _main(*sys.argv[1:])
