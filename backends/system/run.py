"""
The one place that starts other programs.

Every command has a deadline and a session of its own, so that its children end with
it; output is bounded; nothing goes through a shell.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Final

from backends.errors import BackendError, DeadlineError
from backends.system.clock import Deadline
from backends.system.lines import lines_of
from backends.system.programs import name_of
from backends.system.traffic import traffic, waits_for_lease

_OUTPUT_SIZE_MAX: Final = 64 * 1024
_LINE_SIZE_MAX: Final = 8 * 1024
_ANSWER_SIZE_MAX: Final = 16 * 1024 * 1024
_KILL_WAIT_S: Final = 5.0
# rsync ends lines that replace each other with a carriage return.
_LINE_ENDS: Final = re.compile(rb"[\r\n]")
_LAST_WORDS_WAIT_S: Final = 1.0
# Who holds a lease has so long to give it back. See `regular_files`.
_LEASE_PATIENCE_S: Final = 2.0
# What a command may see of our environment; the locale keeps messages parseable.
_ENVIRONMENT: Final = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
}


# A daemon that is killed takes its commands along: a copy that went on alone would
# write into a directory that the next start has taken back.
_DIE_WITH_CALLER: Final = ("setpriv", "--pdeathsig", "KILL", "--")


class LeasedError(BackendError):
    """A program was kept by a lease on a file, which another one does not give back."""


@dataclass(frozen=True, slots=True)
class Completed:
    """A command that has ended; of its errors it has the last 64 KiB."""

    exit_status: int
    output: str
    errors: str


def find_program(name: str) -> str | None:
    """Return the path of program *name* on the daemon's fixed search path."""
    return shutil.which(name, path=_ENVIRONMENT["PATH"])


def run(
    command: Sequence[str],
    *,
    deadline_s: float,
    allowed: Sequence[int] = (0,),
    output_size_max: int = _OUTPUT_SIZE_MAX,
) -> Completed:
    """
    Return the result of *command*, ended within *deadline_s*; its output is cut.

    Raises:
        BackendError: the program is missing, or its exit status is not *allowed*.
        DeadlineError: it was still running and has been killed.

    """
    process = _start(command)
    deadline = Deadline(deadline_s)
    output, errors = bytearray(), b""
    try:
        for is_error, piece in _pieces(process, deadline):
            if is_error:
                errors = (errors + piece)[-_OUTPUT_SIZE_MAX:]
            else:
                output += piece[: output_size_max - len(output)]
        status = process.wait(deadline.remaining_s())
    except subprocess.TimeoutExpired:
        raise DeadlineError(
            f"'{name_of(command)}' was still running after {deadline_s:.0f} s"
        ) from None
    finally:
        _kill(process)
    completed = Completed(
        status, output.decode(errors="replace"), errors.decode(errors="replace")
    )
    return _checked(command, completed, allowed)


def run_with_progress(
    command: Sequence[str],
    *,
    stall_s: float,
    on_line: Callable[[str], None],
    stdin: int = subprocess.DEVNULL,
) -> None:
    """
    Run *command*, calling *on_line* for each line of output as it comes.

    Lines end with a newline or a carriage return. If *on_line* raises, the command is
    killed and the error passed on.

    Raises:
        BackendError: the program is missing or failed.
        DeadlineError: it stood still for *stall_s*; it has been killed.

    """
    with closing(stream(command, stall_s=stall_s, stdin=stdin)) as pieces:
        for line in lines_of(pieces, _LINE_ENDS):
            if line.strip():
                on_line(line.decode(errors="replace"))


def stream(
    command: Sequence[str], *, stall_s: float, stdin: int = subprocess.DEVNULL
) -> Generator[bytes, None, None]:
    """
    Yield the output of *command* piece by piece, and b"" in each second of silence.

    The command stands still while it prints nothing, reads nothing and writes nothing.
    It is killed when the reader stops. If it fails, the last line of its standard error
    is part of the error.

    Raises:
        BackendError: the program is missing or failed; what was yielded is not all.
        LeasedError: a lease that another program holds kept it.
        DeadlineError: it stood still for *stall_s*; it has been killed.

    """
    process = _start(command, stdin=stdin)
    errors, moved = b"", [""]
    silence, leased = Deadline(stall_s), Deadline(_LEASE_PATIENCE_S)
    try:
        for is_error, piece in _pieces(process):
            if is_error:
                errors = (errors + piece)[-_OUTPUT_SIZE_MAX:]
            else:
                yield piece
            before, moved = moved, moved if piece else traffic(process.pid)
            # How long the reader takes is not the program's silence.
            if piece or moved != before:
                silence, leased = Deadline(stall_s), Deadline(_LEASE_PATIENCE_S)
            elif silence.passed():
                raise DeadlineError(f"no progress for {stall_s:.0f} s")
            elif leased.passed() and waits_for_lease(process.pid):
                raise LeasedError(
                    f"'{name_of(command)}' waits for a file that another program "
                    "holds a lease on (F_SETLEASE)",
                    hint="end that program; /proc/locks has its number",
                )
        status = process.wait(timeout=_KILL_WAIT_S)
    except subprocess.TimeoutExpired:
        raise DeadlineError(f"'{name_of(command)}' did not end") from None
    finally:
        _kill(process)
    _checked(command, Completed(status, "", errors.decode(errors="replace")), (0,))


class Helper:
    """
    A program that answers each line of input with one line, until it is ended.

    For work that may have to be killed but is too frequent to start a program for.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._name = command[-1]
        # It is to outlive the thread that starts it; it ends when its input does.
        self._process = _start(
            command, stdin=subprocess.PIPE, stderr=None, dies_with_caller=False
        )
        self._killed = False

    def lives(self) -> bool:
        """Return whether it can be asked."""
        return not self._killed and self._process.poll() is None

    def kill(self) -> None:
        """Kill it and its children; another thread that waits for an answer hears."""
        self._killed = True
        with suppress(ProcessLookupError):
            if self._process.poll() is None:
                os.killpg(self._process.pid, signal.SIGKILL)

    def ask(self, line: str, *, deadline: Deadline) -> str:
        """
        Return the helper's answer to *line*.

        Raises:
            DeadlineError: it did not answer in time; end it.
            BackendError: it has ended, or says more than any answer is; end it.

        """
        process = self._process
        if process.stdin is None or process.stdout is None:
            raise BackendError(f"helper '{self._name}' has no pipes")
        try:
            process.stdin.write(line.encode() + b"\n")
            process.stdin.flush()
        except OSError as error:
            raise BackendError(f"helper '{self._name}' has ended") from error
        descriptor = process.stdout.fileno()
        answer = bytearray()
        # It says nothing before it is asked again: the line's end is that of a chunk.
        while not answer.endswith(b"\n"):
            if not _ready(descriptor, select.POLLIN, deadline.remaining_s()):
                raise DeadlineError(f"helper '{self._name}' did not answer in time")
            chunk = os.read(descriptor, 1 << 20)
            if not chunk:
                raise BackendError(f"helper '{self._name}' has ended")
            answer += chunk
            if len(answer) > _ANSWER_SIZE_MAX:
                raise BackendError(f"helper '{self._name}' answers without an end")
        return answer[:-1].decode()

    def end(self) -> None:
        """Kill it and let go of it; no other thread may be using it."""
        if self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()
        _kill(self._process)


class Dialogue:
    """A program whose input and output are one socket, which its user closes."""

    def __init__(self, command: Sequence[str]) -> None:
        """
        Start *command*.

        Raises:
            BackendError: the program is missing.

        """
        self.socket, its = socket.socketpair()
        try:
            with its:
                self._process = _start(command, stdin=its.fileno(), stdout=its.fileno())
        except BaseException:
            self.socket.close()
            raise

    def takes_more(self, *, within_s: float) -> bool:
        """Return whether the socket can be written, or the program has ended."""
        return _ready(self.socket.fileno(), select.POLLOUT, within_s)

    def end(self) -> str:
        """Return what it said on standard error; it has a second to end by itself."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=_LAST_WORDS_WAIT_S)
        said = b""
        if self._process.stderr is not None:
            os.set_blocking(self._process.stderr.fileno(), False)
            said = self._process.stderr.read(_OUTPUT_SIZE_MAX) or b""
        _kill(self._process)
        return said.decode(errors="replace").strip()


class Service:
    """
    A program that runs until it is ended, or the thread that started it ends.

    What it prints must be read to its end, or it stops at a full pipe.
    """

    def __init__(self, command: Sequence[str]) -> None:
        """
        Start *command*.

        Raises:
            BackendError: the program is missing.

        """
        self._process = _start(command, stderr=subprocess.STDOUT)

    def lines(self) -> Iterator[str]:
        """Yield what it prints, line by line, until it has ended."""
        output = self._process.stdout
        if output is not None:
            # What is longer than any line should be is cut into several.
            while line := output.readline(_LINE_SIZE_MAX):
                yield line.decode(errors="replace").rstrip("\r\n")

    def end(self) -> None:
        """Kill it with its children; one that has ended already is no error."""
        if self._process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def wait(self) -> int:
        """Return its exit status; it is killed if it goes on without its output."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=_KILL_WAIT_S)
        _kill(self._process)
        return self._process.returncode if self._process.poll() is not None else -1


def _pieces(
    process: subprocess.Popen[bytes], deadline: Deadline | None = None
) -> Iterator[tuple[bool, bytes]]:
    """
    Yield what the command says, and whether that is on standard error.

    Nothing is yielded in each second of silence.

    Raises:
        TimeoutExpired: *deadline* has passed, if there is one.

    """
    if process.stdout is None or process.stderr is None:
        raise BackendError("a program has no output to read")
    told = process.stderr.fileno()
    poll = select.poll()
    left = {process.stdout.fileno(), told}
    for descriptor in left:
        poll.register(descriptor, select.POLLIN)
    while left:
        wait_s = 1.0 if deadline is None else min(1.0, deadline.remaining_s())
        if not wait_s:
            raise subprocess.TimeoutExpired(process.args, 0)
        found = poll.poll(wait_s * 1000)
        if not found:
            yield False, b""
        for descriptor, _ in found:
            chunk = os.read(descriptor, 65536)
            if chunk:
                yield descriptor == told, chunk
            else:
                poll.unregister(descriptor)
                left.discard(descriptor)


def _ready(descriptor: int, for_what: int, timeout_s: float) -> bool:
    """Return whether *descriptor* is ready, or at its end, within *timeout_s*."""
    poll = select.poll()  # select(2) ends at descriptor 1024
    poll.register(descriptor, for_what)
    return bool(poll.poll(timeout_s * 1000))


def _start(
    command: Sequence[str],
    *,
    stdin: int = subprocess.DEVNULL,
    stdout: int = subprocess.PIPE,
    stderr: int | None = subprocess.PIPE,
    dies_with_caller: bool = True,
) -> subprocess.Popen[bytes]:
    full = [*(_DIE_WITH_CALLER if dies_with_caller else ()), *command]
    for name in {full[0], command[0]}:
        if find_program(name) is None:
            raise BackendError(
                f"program '{name}' is not installed",
                hint="remora doctor lists the programs needed and their packages",
            )
    return subprocess.Popen(
        full,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        env=_ENVIRONMENT,
        start_new_session=True,
    )


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the command and its children; a process stuck in the kernel is left."""
    if process.poll() is None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=_KILL_WAIT_S)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            pass
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def _checked(
    command: Sequence[str], completed: Completed, allowed: Sequence[int]
) -> Completed:
    if completed.exit_status in allowed:
        return completed
    lines = (completed.errors.strip() or completed.output.strip()).splitlines()
    said = lines[-1] if lines else "nothing printed"
    name = name_of(command)
    raise BackendError(f"'{name}' exited {completed.exit_status}: {said}")
