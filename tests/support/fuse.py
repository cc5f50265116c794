"""
Kills a process, which does a use case, at its n-th step.

A step is a system call that may change something that outlives the process: see
`syscalls`. The process and the programs that it starts are stopped before each of them
by the kernel, and we let it go on or kill it. "Before step n" is the same disk as
"after step n - 1", so that one kill for each step, and the life to the end, are all
that can be left.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import select
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

from tests.support.syscalls import HARMLESS, call_name, compiled, stop_at_steps

World = TypeVar("World")

STEPS_MAX: Final = 2000
NEVER: Final = 0
_DEADLINE_S: Final = 60.0
_GONE_WITHIN_S: Final = 10.0
# Source: include/uapi/linux/seccomp.h
_RECEIVE: Final = 0xC050_2100
_SEND: Final = 0xC018_2101
_NOTIFICATION: Final = struct.Struct("=QII iI Q6Q")
_ANSWER: Final = struct.Struct("=QqiI")
_CONTINUE: Final = 1
# What is written to one of these ends with the processes, or is for people to read.
_PASSING: Final = ("pipe:", "anon_inode:", "/memfd:", "/dev/null")
_SOCKET: Final = "socket:"
# With it Python sends; how our own descriptor comes to the parent is not among them.
SENDING: Final = frozenset({"sendto"})
_WRITES: Final = frozenset(
    {"write", "writev", "pwrite64", "pwritev", "pwritev2", "ftruncate", "ioctl"}
)
# What changes a file later, without a call that could be stopped.
_UNSEEN: Final = ("mmap of ", "io_uring_")
# SQLite's index of its log is memory that processes share: the next start makes it
# anew. It is mapped and written to, and no step.
_SHARED_MEMORY: Final = "-shm"


@dataclass
class Life:
    """How a process ended: it was killed, or it lived; its steps until then."""

    died: bool
    steps: list[str] = field(default_factory=list)


def lives(
    disk: Path,
    prepare: Callable[[Path], object],
    start: Callable[[Path], World],
    act: Callable[[World], object],
) -> Iterator[tuple[Path, Life]]:
    """
    Yield the directory that each killed process has left, and at last the one that a
    process left which lived to the end of *act*.

    Before *start*, *prepare* fills the directory, a new one each time.
    """
    for step in range(1, STEPS_MAX):
        directory = disk / str(step)
        directory.mkdir()
        prepare(directory)
        life = live(lambda at=directory: start(at), act, fatal_step=step)
        yield directory, life
        if not life.died:
            print(f"{step} crash points", file=sys.stderr)
            return
    raise AssertionError(f"still dying at step {STEPS_MAX}")


def live(
    start: Callable[[], World],
    act: Callable[[World], object],
    *,
    fatal_step: int = NEVER,
    sends: bool = False,
    harmless: frozenset[str] = HARMLESS,
) -> Life:
    """
    Do *act* on what *start* makes in a process that dies at *fatal_step*, if it can.

    Steps are counted from 1, and those of *start* are none. With *sends*, what is sent
    to others, who keep it, is a step as well. The process is a fork of this one, which
    has imported everything already.
    """
    program = compiled(harmless - SENDING if sends else harmless)
    ours, theirs = socket.socketpair()
    said = os.memfd_create("said")
    child = os.fork()
    if child == 0:
        ours.close()
        _be_the_child(start, act, theirs, said, program)
    theirs.close()
    with ours, os.fdopen(said, "r+b") as told:
        _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
        life = Life(died=False)
        status = (
            _Watch(child, descriptors[0], life, sends=sends).to_the_end(fatal_step)
            if descriptors
            else os.waitpid(child, 0)[1]
        )
        told.seek(0)
        text = told.read().decode(errors="replace")
    assert not [each for each in life.steps if each.startswith(_UNSEEN)], life.steps
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL, text
        assert len(life.steps) == fatal_step, text
        life.died = True
    else:
        assert os.WEXITSTATUS(status) == 0, f"the use case failed: {text}"
    return life


def _be_the_child(
    start: Callable[[], World],
    act: Callable[[World], object],
    parent: socket.socket,
    said: int,
    program: bytes,
) -> None:
    try:
        # Kept apart from pytest's files, to which each line would be a step.
        os.dup2(said, 1)
        os.dup2(said, 2)
        sys.stdout = sys.stderr = os.fdopen(os.dup(said), "w")
        world = start()
        socket.send_fds(parent, [b"!"], [stop_at_steps(program)])
        act(world)
    except BaseException:  # noqa: BLE001 - told to the parent
        os.write(2, traceback.format_exc().encode())
        os._exit(1)
    os._exit(0)


class _Watch:
    """Lets a process and those that it starts take their steps, up to the fatal one."""

    def __init__(self, process: int, listener: int, life: Life, *, sends: bool) -> None:
        self._process = process
        self._listener = listener
        self._life = life
        self._passing = _PASSING if sends else (*_PASSING, _SOCKET)

    def to_the_end(self, fatal_step: int) -> int:
        """Return the wait status of the process, which has died or come to its end."""
        ends_at = time.monotonic() + _DEADLINE_S
        watched = os.pidfd_open(self._process)
        poll = select.poll()
        poll.register(watched, select.POLLIN)
        poll.register(self._listener, select.POLLIN)
        try:
            while watched not in (ready := dict(poll.poll(1000))):
                if time.monotonic() > ends_at:
                    os.kill(self._process, signal.SIGKILL)
                    raise AssertionError(f"it hangs after {self._life.steps[-3:]}")
                if ready.get(self._listener, 0) & select.POLLIN:
                    self._take(fatal_step)
            _, status = os.waitpid(self._process, 0)
            self._until_all_have_gone()
        finally:
            os.close(watched)
            os.close(self._listener)
        return status

    def _take(self, fatal_step: int) -> None:
        received = self._receive()
        if received is None:
            return
        identity, thread, step = received
        if step:
            self._life.steps.append(step)
            if len(self._life.steps) == fatal_step:
                os.kill(self._process, signal.SIGKILL)
                # What it has started goes on, if at all, when it is dead already.
                os.waitid(os.P_PID, self._process, os.WEXITED | os.WNOWAIT)
                if _is_dying(thread):
                    return  # an answer that comes early enough would let it go on
        self._answer(identity)

    def _receive(self) -> tuple[int, int, str] | None:
        """Return a stop, its thread and its step, which is "" if it changes nothing."""
        content = bytearray(_NOTIFICATION.size)
        try:
            fcntl.ioctl(self._listener, _RECEIVE, content)
        except OSError as error:
            if error.errno != errno.ENOENT:  # it was killed meanwhile
                raise
            return None
        identity, thread, _, number, _, _, *arguments = _NOTIFICATION.unpack(content)
        name = call_name(number)
        if name == "mmap":
            return identity, thread, _mapping(thread, arguments)
        if name in _WRITES and _target(thread, arguments[0]).startswith(self._passing):
            return identity, thread, ""
        return identity, thread, name

    def _answer(self, identity: int) -> None:
        content = bytearray(_ANSWER.pack(identity, 0, 0, _CONTINUE))
        try:
            fcntl.ioctl(self._listener, _SEND, content)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise

    def _until_all_have_gone(self) -> None:
        """Wait for the programs that the process has started; some outlive it."""
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        ends_at = time.monotonic() + _GONE_WITHIN_S
        while time.monotonic() < ends_at:
            for _, event in poll.poll(100):
                if event & select.POLLHUP:
                    return
                if (received := self._receive()) is not None:
                    self._answer(received[0])
        raise AssertionError("something that the process started goes on")


def _is_dying(thread: int) -> bool:
    try:
        status = Path(f"/proc/{thread}/status").read_text()
    except OSError:
        return True
    pending = int(status.partition("SigPnd:")[2].split()[0], 16)
    return bool(pending & 1 << signal.SIGKILL - 1)


def _target(thread: int, descriptor: int) -> str:
    with suppress(OSError):
        link = Path(f"/proc/{thread}/fd/{ctypes.c_int(descriptor).value}")
        return str(link.readlink())
    return ""


def _mapping(thread: int, arguments: list[int]) -> str:
    """Return "" for shared memory; what is written to a mapped file, nobody sees."""
    path = _target(thread, arguments[4])
    if not path or path.endswith(_SHARED_MEMORY):
        return ""
    return f"mmap of {path}"
