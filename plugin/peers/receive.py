"""
The program that sshd runs for whatever another node asks: `remora-receive`.

    remora control                          JSON lines to and from the daemon
    remora receive VOLUME EPOCH SEQ --server …   rsync, into a staging directory

Nothing else is done, and every refusal is told to the daemon, which logs it. The node
that asks is known by its key: sshd puts its id on our command line. The daemon decides
whether it may. This program trusts nothing in the request. Of rsync's options it uses
only the letters by which two versions of rsync agree on their protocol.

It is started for each session, in a bare Python with the standard library alone.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import select
import signal
import socket
import sys
from contextlib import suppress

from backends.system import jail
from backends.system.attributes import RSYNC_FILTERS
from backends.system.traffic import traffic
from plugin.peers import relay

# The options that the sender gives to rsync, and those that rsync then asks for here. A
# change of the first changes the second. A test compares them with a real rsync.
RSYNC_OPTIONS = (
    *("-aHAXS", "--numeric-ids"),
    # Times are kept to the nanosecond, but equal times prove nothing: each file that is
    # named has changed, so its content is compared.
    *("--modify-window=-1", "--ignore-times"),
    *RSYNC_FILTERS,
)
# The files of a commit are named on rsync's input; a tree that is sent ahead goes as a
# whole, which takes rsync much less for many files, and no other filesystem with it.
NAMES_OPTIONS, NAMES_FLAGS = ("--from0", "--files-from=-"), "-lHogDtpAXIRS"
TREE_OPTIONS, TREE_FLAGS = ("--one-file-system",), "-lHogDtpAXrIxS"
SERVER_OPTIONS = ("-@-1", "--numeric-ids")
_UUID = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_NUMBER = "(?:0|[1-9][0-9]{0,17})"
# What the copy holds already: rsync sends only the parts of a file that differ. The
# sender uses the second name, too: beside the tree lie files about the commit.
_BASIS, _TREE = "basis", "tree"
# Where files are until they are whole, and what was broken off; see `partial.py`. The
# first are below where rsync works: for each file it opens all directories on the way.
_UNFINISHED, _UNFINISHED_OF_TREE = "unfinished", ".remora.unfinished"
_PARTS = "/staging/partial"
_IN_PLACE = "I"  # rsync's letter for writing to a part
CONTROL = "remora control"
RECEIVE = re.compile(
    f"remora receive ({_UUID}) ({_NUMBER}) ({_NUMBER})"
    f" --server (?:{NAMES_FLAGS}|{TREE_FLAGS})(e\\.[A-Za-z]{{1,24}})"
    # The sender keeps its limit by itself.
    "(?: --bwlimit=[0-9]{1,10})?"
    f" {' '.join(SERVER_OPTIONS)} \\. [!-~]{{1,4096}}"
)

COMMAND_LENGTH_MAX = 1000
LINE_LENGTH_MAX = 64 * 1024
_ANSWER_WITHIN_S = 60.0
# The wait for the rsync before us, which is ending, or for a commit to be applied.
_TURN_WITHIN_S = 30
_CHUNK = 65536
_LOOK_EVERY_MS = 1000
EXIT_UNAVAILABLE = 1
EXIT_REFUSED = 3


class RefusedError(Exception):
    """The daemon said no, or nothing; the text is the line that the peer gets."""


class Daemon:
    """The daemon, at its socket for peers."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(_ANSWER_WITHIN_S)
        self.socket.connect(path)

    def ask(self, message: dict[str, object]) -> dict[str, str]:
        """Return the daemon's result for *message*; its error is raised."""
        self.socket.sendall(json.dumps(message).encode() + b"\n")
        line = b""
        # It says nothing but answers, so no more than one line is on its way.
        while not line.endswith(b"\n"):
            chunk = self.socket.recv(_CHUNK)
            if not chunk or len(line) > LINE_LENGTH_MAX:
                raise RefusedError("unavailable: the daemon gave no answer")
            line += chunk
        answer: dict[str, dict[str, str]] = json.loads(line)
        if "error" in answer:
            error = answer["error"]
            hint = f" (hint: {error['hint']})" if error["hint"] else ""
            raise RefusedError(f"{error['code']}: {error['cause']}{hint}")
        return answer["result"]


def main() -> None:
    """Serve one session of the node of argument 2 with the daemon at argument 1."""
    path, node = sys.argv[1:3]
    command = os.environ.get("SSH_ORIGINAL_COMMAND", "")
    os.umask(0o077)
    try:
        sys.exit(_serve(Daemon(path), node, command))
    except RefusedError as refusal:
        _say(str(refusal))
        sys.exit(EXIT_REFUSED)
    except OSError as error:
        _say(f"unavailable: {error.strerror or error}")
        sys.exit(EXIT_UNAVAILABLE)


def _serve(daemon: Daemon, node: str, command: str) -> int:
    """Return the exit status of the session that *command* asks for."""
    if command == CONTROL:
        daemon.ask({"node": node, "session": "control"})
        return _become_relay(daemon.socket)
    match = RECEIVE.fullmatch(command)
    if match is None:
        shown = command[:COMMAND_LENGTH_MAX]
        daemon.ask({"node": node, "session": "refused", "command": shown})
        raise RefusedError("refused: this key is for remora alone")
    volume, epoch, seq, capabilities = match.groups()
    result = daemon.ask(
        {
            "node": node,
            "session": "receive",
            "volume": volume,
            "epoch": int(epoch),
            "seq": int(seq),
        }
    )
    status = _receive(daemon.socket, result, capabilities)
    daemon.ask({"exit_status": status})
    return status


def _become_relay(daemon: socket.socket) -> int:
    """Go on as `relay.py`, for good, in a Python that has not imported what we have."""
    daemon.settimeout(None)
    daemon.set_inheritable(True)
    script = (
        f"import sys; sys.path.insert(0, {sys.path[0]!r}); "
        f"from {relay.__name__} import main; main()"
    )
    arguments = [sys.executable, "-IS", "-c", script, str(daemon.fileno())]
    os.execv(sys.executable, arguments)


def _receive(daemon: socket.socket, place: dict[str, str], capabilities: str) -> int:
    """Return rsync's exit status; it is ended if the daemon ends the session."""
    child = os.fork()
    if child == 0:
        try:
            _become_rsync(place, capabilities)
        except OSError as error:
            _say(f"unavailable: {error}")
        finally:
            os._exit(EXIT_UNAVAILABLE)
    ended = os.pidfd_open(child)
    poll = select.poll()
    poll.register(ended, select.POLLIN)
    poll.register(daemon, select.POLLIN)
    in_proc, moved = _in_proc(ended), [""]
    while not (ready := [each for each, _ in poll.poll(_LOOK_EVERY_MS)]):
        # rsync says nothing for minutes while it reads what a large file was. An empty
        # line, which no error shows, tells the sender that it does not stand still.
        before, moved = moved, traffic(in_proc)
        if moved != before:
            _say("")
    # The daemon is silent until we have told it the end: this is its hanging up.
    if ended not in ready:
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _in_proc(process: int) -> int:
    """
    Return the number that *process* (a pidfd) has in /proc, which is not our own's.

    Source: pidfd_open(2), proc_pid_fdinfo(5).
    """
    with open(f"/proc/self/fdinfo/{process}", encoding="ascii") as file:
        lines = dict(line.split(":", 1) for line in file)
    return int(lines["Pid"])


def _become_rsync(place: dict[str, str], capabilities: str) -> None:
    os.setpgid(0, 0)
    os.nice(int(place.get("nice", "0")))
    _wait_for_turn(place["lock"])
    # Without /proc, rsync can set the mode of a device or socket only as it makes it.
    os.umask(0)
    jail.enter(
        jail.Shown("staging", place["directory"], writable=True),
        jail.Shown(f"{_BASIS}/{_TREE}", place["basis"]),
        capabilities=jail.WRITING,
        programs=True,
    )
    within, unfinished = "", _UNFINISHED
    if place.get("is_tree"):
        within, unfinished = f"/{_TREE}", _UNFINISHED_OF_TREE
    for each in (f"/staging{within}/{unfinished}", _PARTS):
        os.makedirs(each, 0o700, exist_ok=True)
    os.chdir(f"/staging{within}")
    # "." is all that it writes to, whatever path the sender asked for.
    flags = TREE_FLAGS if place.get("is_tree") else NAMES_FLAGS
    # A part is not written to in place: of what an earlier daemon knew of, nobody can
    # tell whether the disk has lost some.
    flags += capabilities.replace(_IN_PLACE, "")
    # However rsync ends, what it has of a file stays, for the next one to go on from.
    parts = f"--temp-dir={unfinished}", f"--partial-dir={_PARTS}"
    own = (*parts, f"--compare-dest=/{_BASIS}{within}", *RSYNC_FILTERS)
    arguments = ["rsync", "--server", flags, *SERVER_OPTIONS, *own, ".", "."]
    environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
    os.execve("/usr/bin/rsync", arguments, environment)


def _wait_for_turn(path: str) -> None:
    """
    Lock the staging directory for as long as one process of rsync lives.

    So the kernel tells when nobody writes any more, whatever has become of us and of
    the daemon. SIGALRM ends this process if it waits too long. Source: flock(2).
    """
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    os.set_inheritable(lock, True)
    signal.alarm(_TURN_WITHIN_S)
    fcntl.flock(lock, fcntl.LOCK_EX)
    signal.alarm(0)


def _say(line: str) -> None:
    with suppress(OSError):
        os.write(2, f"{line}\n".encode(errors="replace"))
