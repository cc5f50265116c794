"""Commands in a node, and bytes to its sockets; none of it needs the network."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING, Any

from tests.support.host import checked

from .channel import GRACE_S, Answers, Channel, NodeDownError
from .guest import EXCHANGE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

# The second serial line; the first carries the commands.
TERMINAL = "/dev/ttyS1"


class NodeProcess:
    """A command that runs in a node; its output can be read at any time."""

    def __init__(
        self, commands: Commands, argv: Sequence[str], answers: Answers
    ) -> None:
        self.argv = list(argv)
        self.returncode: int | None = None
        self._commands = commands
        self._answers = answers
        self._files = commands.exchange / str(answers.number)
        started = answers.next(GRACE_S)
        if "error" in started:
            raise AssertionError(f"{' '.join(argv)}: {started['error']}")
        self.pid: int = started["pid"]

    def poll(self) -> int | None:
        """Return the exit code (negative: the signal) if the command has ended."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout_s: float = 30.0) -> int:
        """
        Return the exit code (negative: the signal).

        Raises:
            subprocess.TimeoutExpired: it has not ended in time.
            NodeDownError: the node's power failed first.
        """
        if self.returncode is None:
            try:
                self.returncode = self._answers.next(timeout_s)["status"]
            except TimeoutError:
                raise subprocess.TimeoutExpired(self.argv, timeout_s) from None
        return self.returncode

    def send_signal(self, number: int, *, group: bool = True) -> None:
        """Send signal *number* to the command and, with *group*, what it started."""
        self._commands.ask(
            do="signal", job=self._answers.number, signal=number, group=group
        )

    def kill(self) -> None:
        """Send SIGKILL to the command and what it started."""
        self.send_signal(9)

    def output(self) -> str:
        """Return what it has printed up to now."""
        return text_of(self._files.with_suffix(".out"))

    def error_output(self) -> str:
        """Return what it has printed to its standard error up to now."""
        return text_of(self._files.with_suffix(".err"))


class Commands:
    """What a node does for the host; the part of `Node` that talks to process 1."""

    def __init__(self, name: str, exchange: Path) -> None:
        self.name = name
        self.exchange = exchange
        self._channel: Channel | None = None
        exchange.mkdir(parents=True)

    def run(
        self,
        command: str | Sequence[str],
        *,
        timeout_s: float = 30.0,
        check: bool = True,
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
    ) -> subprocess.CompletedProcess[str]:
        """
        Return the outcome of *command*: a script for `sh -eu`, or a list of arguments.

        Raises:
            AssertionError: it failed, and *check* is true; the text has its output.
            subprocess.TimeoutExpired: it was killed with its process group after
                *timeout_s*; has the output so far.
            NodeDownError: the node is off or went off.
        """
        argv = argv_of(command)
        answers = self._start(argv, env=env, stdin=stdin, deadline_s=timeout_s)
        path = self.exchange / str(answers.number)
        try:
            answer = answers.next(timeout_s + GRACE_S)
        finally:
            answers.close()
            out, errors = (text_of(path.with_suffix(end)) for end in (".out", ".err"))
            for suffix in (".in", ".out", ".err"):
                path.with_suffix(suffix).unlink(missing_ok=True)
        if "error" in answer:
            raise AssertionError(f"{' '.join(argv)}: {answer['error']}")
        if answer["expired"]:
            raise subprocess.TimeoutExpired(argv, timeout_s, out, errors)
        done = subprocess.CompletedProcess(argv, answer["status"], out, errors)
        return checked(done) if check else done

    def out(self, command: str | Sequence[str], *, timeout_s: float = 30.0) -> str:
        """Return what *command* prints, without the last line's end."""
        return self.run(command, timeout_s=timeout_s).stdout.rstrip("\n")

    def popen(
        self,
        command: str | Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        log: Path | None = None,
        stdin: bytes = b"",
    ) -> NodeProcess:
        """Start *command*; with *log*, from `log_path`, all its output goes there."""
        argv = argv_of(command)
        out = f"{EXCHANGE}/{log.name}" if log else None
        answers = self._start(argv, env=env, stdin=stdin, announce=True, out=out)
        return NodeProcess(self, argv, answers)

    def ask(self, **request: Any) -> dict[str, Any]:
        """Return the answer of the node's process 1 to *request*."""
        return self._line().ask(**request)

    def exchange_with_socket(
        self, path: str, data: bytes, *, timeout_s: float = 30.0
    ) -> bytes:
        """
        Return everything that the Unix socket at *path* answers to *data*.

        Raises:
            OSError: it could not be reached, or there was no end within *timeout_s*.
        """
        channel = self._line()
        number = channel.number()
        sent, answer = (self.exchange / f"{number}{end}" for end in (".in", ".out"))
        sent.write_bytes(data)
        answers = channel.send(
            number,
            do="exchange",
            socket=path,
            deadline_s=timeout_s,
            **{"in": f"{EXCHANGE}/{sent.name}"},
        )
        try:
            result = answers.next(timeout_s + GRACE_S)
            if "error" in result:
                raise OSError(result.get("errno"), f"{path}: {result['error']}")
            return answer.read_bytes()
        finally:
            answers.close()
            sent.unlink()
            answer.unlink(missing_ok=True)

    def start_terminal(self, columns: int, lines: int) -> NodeProcess:
        """Start an interactive shell on the node's second serial line."""
        return self.popen(
            f"stty sane columns {columns} rows {lines} <{TERMINAL}\n"
            f"exec setsid --ctty --wait bash --norc <{TERMINAL} >{TERMINAL} 2>&1",
            env={"TERM": os.environ.get("TERM", "linux")},
        )

    def _line(self) -> Channel:
        if self._channel is None:
            raise NodeDownError(f"{self.name} is off")
        return self._channel

    def _start(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None,
        stdin: bytes,
        deadline_s: float | None = None,
        announce: bool = False,
        out: str | None = None,
    ) -> Answers:
        channel = self._line()
        number = channel.number()
        request: dict[str, Any] = {"argv": list(argv), "env": dict(env or {})}
        if stdin:
            (self.exchange / f"{number}.in").write_bytes(stdin)
            request["in"] = f"{EXCHANGE}/{number}.in"
        return channel.send(
            number,
            do="start",
            deadline_s=deadline_s,
            announce=announce,
            out=out,
            **request,
        )


def argv_of(command: str | Sequence[str]) -> list[str]:
    """Return the arguments that *command* stands for."""
    return ["sh", "-euc", command] if isinstance(command, str) else list(command)


def text_of(path: Path) -> str:
    """Return what the file *path* holds, '' without one."""
    return path.read_text(errors="replace") if path.exists() else ""
