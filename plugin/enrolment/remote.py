"""
Commands on another machine, as root, over an SSH connection that is logged in.

Each command is a shell script with arguments. It has a deadline, which `timeout` keeps
on the machine itself as well, so that nothing goes on there after we have given up;
what it prints is bounded. If another user than root has logged in, sudo is used.
"""

from __future__ import annotations

import hashlib
import io
import select
import shlex
import threading
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from typing import IO, Final

import paramiko

from backends.system.clock import Deadline
from backends.system.run import Completed
from plugin.errors import EnrolmentError

SHORT_S: Final = 30.0
# Opening a session, and each write to a machine that takes nothing.
_STEP_TIMEOUT_S: Final = 15.0
# So long after the `timeout` there we give up here.
_GRACE_S: Final = 15.0
_KILL_AFTER_S: Final = 5
_OUTPUT_SIZE_MAX: Final = 64 * 1024
_CHUNK_SIZE: Final = 32 * 1024
_TIMED_OUT: Final = (124, 137)  # Source: timeout(1)
_ABSENT: Final = 44
_ENVIRONMENT: Final = (
    *("env", "LC_ALL=C.UTF-8"),
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
)
# The outer shell returns a status even if `timeout` has killed itself with the others.
_TIMEOUT: Final = (
    *("sh", "-c", 'timeout "$@"; exit $?', "timeout"),
    f"--kill-after={_KILL_AFTER_S}",
)
# A connection that breaks ends the input early: only whole content is moved into place.
_WRITE: Final = """
umask 022
mkdir -p -- "$(dirname -- "$1")"
new=$(mktemp -- "$1.XXXXXXXX")
trap 'rm -f -- "$new"' EXIT
cat > "$new"
if [ "$(sha256sum < "$new" | cut -c 1-64)" != "$3" ]; then
    echo "not all of $1 has arrived" >&2
    exit 1
fi
chmod -- "$2" "$new"
sync -- "$new"
mv -f -- "$new" "$1"
sync -- "$(dirname -- "$1")"
"""
_READ: Final = f'[ -e "$1" ] || exit {_ABSENT}; cat -- "$1"'
_DIGEST: Final = f'[ -e "$1" ] || exit {_ABSENT}; sha256sum < "$1" | cut -c 1-64'


class RemoteMachine:
    """The machine that people know as *name*, behind *client*."""

    def __init__(self, client: paramiko.SSHClient, *, name: str) -> None:
        self.name = name
        self._client = client
        self._become: Sequence[str] = ()
        self._password = b""

    def become_root(self, ask_password: Callable[[str], str]) -> None:
        """
        Run everything from now on as root; the password is asked for if sudo wants it.

        Raises:
            EnrolmentError: sudo is missing or refuses.

        """
        if self.run("id -u", what="id").output.strip() == "0":
            return
        if self._exit_status("sudo", "-n", "--") == 0:
            self._become = ("sudo", "-n", "--")
            return
        self._password = ask_password(f"sudo password on {self.name}").encode() + b"\n"
        # -k: if sudo remembered a password, the command would read ours as its input.
        self._become = ("sudo", "-k", "-S", "-p", "", "--")
        if self.run(":", what="sudo", allowed=range(256)).exit_status != 0:
            raise EnrolmentError(
                f"{self.name}: sudo does not let this user become root",
                hint="is the password right? --user names another user, such as root",
            )

    def _exit_status(self, *become: str) -> int:
        # sudo may allow only some programs: this is the one that we use later.
        command = shlex.join([*become, *_ENVIRONMENT, "true"])
        return self._exchange(command, io.BytesIO(), Deadline(SHORT_S)).exit_status

    def run(
        self,
        script: str,
        *arguments: str,
        what: str,
        deadline_s: float = SHORT_S,
        stdin: bytes | IO[bytes] = b"",
        allowed: Sequence[int] = (0,),
    ) -> Completed:
        """
        Return the outcome of the shell *script*, which sees *arguments* as $1, $2...

        *what* names it in errors. Output is cut at 64 KiB, of which the end is kept.

        Raises:
            EnrolmentError: it failed or did not end in time; the connection broke.

        """
        command = shlex.join(
            [
                *(*self._become, *_ENVIRONMENT, *_TIMEOUT, f"{deadline_s:.0f}"),
                *("sh", "-euc", script, "sh", *arguments),
            ]
        )
        source = io.BytesIO(stdin) if isinstance(stdin, bytes) else stdin
        completed = self._exchange(command, source, Deadline(deadline_s + _GRACE_S))
        if completed.exit_status in _TIMED_OUT:
            raise EnrolmentError(
                f"{self.name}: {what}: still running after {deadline_s:.0f} s, ended",
                hint="repeat the command when the machine is less busy",
            )
        if completed.exit_status not in allowed:
            lines = (completed.errors.strip() or completed.output.strip()).splitlines()
            said = lines[-1] if lines else f"exit status {completed.exit_status}"
            raise EnrolmentError(f"{self.name}: {what}: {said}")
        return completed

    def write_file(self, path: str, content: bytes, *, mode: int) -> None:
        """Replace the file *path*, durably: it is the old or the new one, whole."""
        digest = hashlib.sha256(content).hexdigest()
        self.run(
            *(_WRITE, path, f"{mode:o}", digest),
            what=f"writing {path}",
            stdin=content,
        )

    def read_file(self, path: str) -> str | None:
        """Return the text of the file *path*; None if it does not exist."""
        done = self.run(_READ, path, what=f"reading {path}", allowed=(0, _ABSENT))
        return done.output if done.exit_status == 0 else None

    def digest_of(self, path: str) -> str:
        """Return the SHA-256 of the file *path*, "" if it does not exist."""
        done = self.run(_DIGEST, path, what=f"reading {path}", allowed=(0, _ABSENT))
        return done.output.strip() if done.exit_status == 0 else ""

    def close(self) -> None:
        """End the connection."""
        self._client.close()

    def _exchange(
        self, command: str, stdin: IO[bytes], deadline: Deadline
    ) -> Completed:
        """Return the outcome of *command*, given the password and then *stdin*."""
        try:
            return self._converse(command, stdin, deadline)
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise EnrolmentError(
                f"the connection to {self.name} broke: {str(error) or 'it was closed'}",
                hint="repeat the command; it goes on where it was",
            ) from error

    def _converse(
        self, command: str, stdin: IO[bytes], deadline: Deadline
    ) -> Completed:
        transport = self._client.get_transport()
        if transport is None:
            raise EOFError
        with closing(transport.open_session(timeout=_STEP_TIMEOUT_S)) as channel:
            channel.settimeout(_STEP_TIMEOUT_S)
            channel.exec_command(command)
            threading.Thread(
                target=_send, args=(channel, self._password, stdin), daemon=True
            ).start()
            output, errors = _collect(channel, deadline)
            if not channel.status_event.wait(deadline.remaining_s()):
                raise TimeoutError("no answer")
            if channel.exit_status < 0:
                raise EOFError
            return Completed(channel.exit_status, output, errors)


def _send(channel: paramiko.Channel, password: bytes, source: IO[bytes]) -> None:
    """Write everything to the command; if that fails, its exit status tells why."""
    try:
        channel.sendall(password)
        while chunk := source.read(_CHUNK_SIZE):
            channel.sendall(chunk)
        channel.shutdown_write()
    except (OSError, EOFError, paramiko.SSHException):
        # We hang up, because the command would wait for the rest for a long time.
        if not channel.eof_received:
            with suppress(OSError, EOFError, paramiko.SSHException):
                channel.close()


def _collect(channel: paramiko.Channel, deadline: Deadline) -> tuple[str, str]:
    """Return what the command printed, on both streams, when it has closed them."""
    poll = select.poll()
    poll.register(channel.fileno(), select.POLLIN)  # readable by either, or at the end
    output, errors = b"", b""
    while True:
        if not poll.poll(deadline.remaining_s() * 1000):
            raise TimeoutError("no answer")
        ended = channel.eof_received or channel.closed
        printed = channel.recv(_CHUNK_SIZE) if channel.recv_ready() else b""
        said = channel.recv_stderr(_CHUNK_SIZE) if channel.recv_stderr_ready() else b""
        output = (output + printed)[-_OUTPUT_SIZE_MAX:]
        errors = (errors + said)[-_OUTPUT_SIZE_MAX:]
        if ended and not printed and not said:
            return output.decode(errors="replace"), errors.decode(errors="replace")
