"""
One OpenSSH server for the other nodes, kept running for as long as the daemon runs.

It has its own port, host key, configuration and list of keys, and shares nothing with
the machine's own sshd: `enclosure.py` hides even more from it. The only thing that it
allows is to start `remora-receive`; `authorization.py` writes which nodes may do so.
Source: sshd(8), sshd_config(5).
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from backends.errors import BackendError, RemoraError, one_line
from backends.system import files
from backends.system.clock import monotonic_s
from backends.system.programs import own_program
from backends.system.run import Service, find_program, run
from plugin.logs import fields
from plugin.peers import enclosure
from plugin.peers.authorization import AUTHORIZED_KEYS, HOST_KEY

log = logging.getLogger(__name__)

DEFAULT_PORT: Final = 7424
# OpenSSH 8.5 or newer (LogVerbose, PerSourceMaxStartups). A node that is let in may run
# one command only; all else is forbidden here and, for each key, in authorized_keys
# ("restrict").
_CONFIGURATION: Final = """\
HostKey "{host_key}"
AuthorizedKeysFile "{authorized_keys}"
Port {port}
{addresses}
PidFile none
UsePAM no
UseDNS no
# The daemon keeps the files' directory to itself; what lies above it is the owner's.
StrictModes no

AllowUsers root
PermitRootLogin forced-commands-only
AuthenticationMethods publickey
PubkeyAuthentication yes
PasswordAuthentication no
KbdInteractiveAuthentication no
HostbasedAuthentication no
# Our client comes with one key.
MaxAuthTries 1
LoginGraceTime 10
# Who has no key holds no more than a few connections, so that nodes get one. A node has
# two at once, and a network of IPv6 gives one machine as many addresses as it wants.
PerSourceMaxStartups {startups_of_source}
PerSourceNetBlockSize 32:64
MaxStartups 64:50:128
MaxSessions 64
{unused}

DisableForwarding yes
AllowTcpForwarding no
AllowStreamLocalForwarding no
AllowAgentForwarding no
X11Forwarding no
PermitTunnel no
GatewayPorts no
PermitTTY no
PermitUserRC no
PermitUserEnvironment no
PrintMotd no
PrintLastLog no

# The first one is the fastest where there is AES in hardware.
Ciphers aes128-gcm@openssh.com,aes256-gcm@openssh.com,chacha20-poly1305@openssh.com
KexAlgorithms curve25519-sha256,curve25519-sha256@libssh.org
HostKeyAlgorithms ssh-ed25519
PubkeyAcceptedAlgorithms ssh-ed25519
Compression no

# A peer that is dead or stopped holds its session no longer than this.
ClientAliveInterval 5
ClientAliveCountMax 3

LogLevel INFO
# What it otherwise refuses without a word in the log.
LogVerbose serverloop.c:server_input_*():*,session.c:session_*_req():*
"""
# A process namespace, because the sessions of a killed sshd would live on: the kernel
# ends all processes of the namespace together with its first one.
_IN_NAMESPACES: Final = (
    *("unshare", "--mount", "--propagation", "slave", "--pid", "--kill-child", "--"),
)
STARTUPS_OF_SOURCE_MAX: Final = 8
# Who has logged in and asks for nothing is let go. The connection that transfers share
# stays for a minute without one ("ControlPersist" in `sharing.py`).
UNUSED_MAX_S: Final = 90
_UNUSED: Final = "UnusedConnectionTimeout"
_HAS_UNUSED: Final = (9, 2)
_VERSION: Final = re.compile(r"OpenSSH_([0-9]{1,4})\.([0-9]{1,4})")
_VERSION_WITHIN_S: Final = 5.0
_LISTENING: Final = "Server listening on "
# Every request passes through the functions of LogVerbose, so most of it is harmless;
# the steps of a login are told by its last line, "Accepted publickey".
_NOISE: Final = re.compile(
    r"debug\d: (?!.*(tcpip-forward listen|streamlocal-forward|ctype tun|not permitted"
    r"|disabled))|Postponed |Root login accepted|Received disconnect|Disconnected from"
)
_REFUSAL: Final = re.compile(
    r"debug\d: |refused|not allowed|[Ff]ailed|[Ii]nvalid|exceeded|by authenticating"
    r"|preauth\]|no matching|Unable|error:|fatal:"
)
# One line a second in the long run: strangers decide how often they try to log in.
_LINES_MAX: Final = 120
_LINES_WINDOW_S: Final = 120.0
_FIRST_PAUSE_S: Final = 0.5
_PAUSE_MAX_S: Final = 30.0
# An sshd that ran for this long did not fail at its start.
_STEADY_S: Final = 60.0
_STOP_WAIT_S: Final = 10.0


class PeerSshd:
    """The sshd on *port*; *directory* holds its files, *run_directory* our sockets."""

    def __init__(
        self,
        directory: Path,
        *,
        run_directory: Path,
        port: int = DEFAULT_PORT,
        addresses: Sequence[str] = (),
        let_go: Sequence[Path] = (),
        unused_max_s: int = UNUSED_MAX_S,
    ) -> None:
        """Keep the daemon's mounts below *let_go* out of sshd's mount namespace."""
        self._directory = directory
        self._run_directory = run_directory
        self._port = port
        self._addresses = tuple(addresses)
        self._let_go = tuple(let_go)
        self._unused_max_s = unused_max_s
        self._fault = "it has not been started"
        self._service: Service | None = None
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._log = _Log()
        # sshd ends with the thread that starts it; this one lives as the daemon does.
        self._thread = threading.Thread(
            target=self._supervise, name="peers:sshd", daemon=True
        )

    def start(self) -> None:
        """Begin to keep it running; `fault` tells whether it does."""
        self._thread.start()

    def stop(self) -> None:
        """End it, and every session."""
        self._stopping.set()
        with self._lock:
            if self._service is not None:
                self._service.end()
        if self._thread.is_alive():
            self._thread.join(_STOP_WAIT_S)

    def fault(self) -> str:
        """Return why no node can reach us, "" if they can."""
        return self._fault

    def _supervise(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while not self._stopping.is_set():
            began_s = monotonic_s()
            try:
                last = self._run()
            except (RemoraError, OSError) as error:
                last = str(error)
            if self._stopping.is_set():
                break
            if monotonic_s() - began_s > _STEADY_S:
                pause_s = _FIRST_PAUSE_S
            self._fault = one_line(f"the sshd for peers has ended: {last}")
            log.warning("%s; again in %.1f s", self._fault, pause_s)
            self._stopping.wait(pause_s)
            pause_s = min(2 * pause_s, _PAUSE_MAX_S)
        self._fault = "it has been stopped"

    def _run(self) -> str:
        """Run it to its end; return the last line it printed."""
        program = find_program("sshd")
        if program is None:
            raise BackendError("program 'sshd' is not installed (openssh-server)")
        configuration = self._directory / "sshd_config"
        content = self.configuration(version_of(program)).encode()
        # With a full disk, a restart must do with what is there.
        if not (configuration.exists() and configuration.read_bytes() == content):
            files.write_durably(configuration, content)
        command = own_program(
            enclosure,
            *(program, str(configuration), str(self._run_directory)),
            *map(str, self._let_go),
        )
        service = Service([*_IN_NAMESPACES, *command])
        with self._lock:
            self._service = service
        if self._stopping.is_set():
            service.end()
        last = "it printed nothing"
        for line in service.lines():
            if line.startswith(_LISTENING):
                self._fault = ""
            if line:
                last = line
            self._log.add(line)
        status = service.wait()
        return f"{last} (exit status {status})"

    def configuration(self, version: tuple[int, int]) -> str:
        """Return the configuration for an OpenSSH of *version*."""
        has_unused = version >= _HAS_UNUSED
        return _CONFIGURATION.format(
            startups_of_source=STARTUPS_OF_SOURCE_MAX,
            unused=f"{_UNUSED} {self._unused_max_s}" if has_unused else "",
            host_key=self._directory / HOST_KEY,
            # sshd would replace a "%" and the letter after it.
            authorized_keys=str(self._directory / AUTHORIZED_KEYS).replace("%", "%%"),
            port=self._port,
            addresses="\n".join(f"ListenAddress {each}" for each in self._addresses),
        )


def version_of(program: str) -> tuple[int, int]:
    """Return OpenSSH's version; old ones tell it with the error about the option."""
    done = run([program, "-V"], deadline_s=_VERSION_WITHIN_S, allowed=(0, 1, 255))
    found = _VERSION.search(done.output + done.errors)
    return (int(found[1]), int(found[2])) if found else (0, 0)


class _Log:
    """Brings sshd's lines into ours, a bounded number."""

    def __init__(self) -> None:
        self._window_ends_s = 0.0
        self._count = 0

    def add(self, line: str) -> None:
        """Log *line*, unless there have been too many or it says nothing."""
        if not line or _NOISE.match(line):
            return
        if monotonic_s() > self._window_ends_s:
            if self._count > _LINES_MAX:
                log.warning("sshd: %d lines not shown", self._count - _LINES_MAX)
            self._count = 0
            self._window_ends_s = monotonic_s() + _LINES_WINDOW_S
        self._count += 1
        if self._count <= _LINES_MAX:
            level = logging.WARNING if _REFUSAL.search(line) else logging.INFO
            log.log(level, "sshd: %s", one_line(line), extra=fields(source="sshd"))
