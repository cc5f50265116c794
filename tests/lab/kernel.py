"""
One kernel (user-mode-linux) as processes of this machine.

They live in a process namespace of their own, whose process 1 is a shell that waits
for the kernel's end or the end of its input, whichever comes first. Its input is a pipe
from this process: however this process ends, the host's kernel then ends every process
of the node. Ending process 1 is a power failure: nothing is flushed, nothing says
goodbye.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.host import SYSTEM_PATH
from tests.support.processes import signal_all

from .kernels import FIRST_ARGUMENTS, memory_directory

if TYPE_CHECKING:
    from collections.abc import Sequence

GUEST = Path(__file__).resolve().parent / "guest.py"
END_DEADLINE_S = 30.0

WARDEN = """
exec {input}<&0
cat <&$input >/dev/null &
"$@" </dev/null {input}<&- &
wait -n
"""


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a kernel is started with."""

    name: str
    program: str
    memory: str
    disks: Sequence[Path]
    tap: str
    mac: str
    network_namespace: str
    init_variable: str
    work: Path


class Kernel:
    """A kernel that runs, until `power_off` or its own end."""

    def __init__(self, hardware: Hardware) -> None:
        self.line, node_line = socket.socketpair()
        self.terminal, node_terminal = socket.socketpair()
        # Its pid file of an earlier boot would name a process of this one.
        shutil.rmtree(hardware.work / "uml", ignore_errors=True)
        (hardware.work / "uml").mkdir()
        # Started from there: a kernel's command line is no place for spaces.
        shutil.copy(GUEST, hardware.work / "guest.py")
        with (
            node_line,
            node_terminal,
            (hardware.work / "console.log").open("ab") as log,
        ):
            self._process = subprocess.Popen(
                [
                    *("nsenter", f"--net={hardware.network_namespace}", "--"),
                    *("unshare", "--pid", "--fork", "--kill-child", "--"),
                    *("bash", "-c", WARDEN, "warden"),
                    *_command_line(
                        hardware, node_line.fileno(), node_terminal.fileno()
                    ),
                ],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=(node_line.fileno(), node_terminal.fileno()),
                env={
                    "PATH": SYSTEM_PATH,
                    "TMPDIR": str(memory_directory(hardware.work)),
                },
            )

    @property
    def pid(self) -> int:
        """The pid of the process that ends when the kernel has ended."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the kernel has not ended."""
        return self._process.poll() is None

    def power_off(self) -> None:
        """Return when every process of the kernel has been killed and is gone."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        with contextlib.suppress(OSError):
            signal_all(map(int, children.read_text().split()), signal.SIGKILL)
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            # `unshare` waits for process 1, and that for all others of its namespace.
            self._process.wait(timeout=END_DEADLINE_S)
        finally:
            self._process.kill()
        self.terminal.close()


def _command_line(hardware: Hardware, line: int, terminal: int) -> list[str]:
    network = f"transport=tap,ifname={hardware.tap},mac={hardware.mac}"
    return [
        hardware.program,
        *FIRST_ARGUMENTS,
        f"mem={hardware.memory}",
        *("rootfstype=hostfs", "rootflags=/", "ro", "quiet"),
        f"init={hardware.work / 'guest.py'}",
        *(f"ubd{'abcdefgh'[n]}={disk}" for n, disk in enumerate(hardware.disks)),
        f"vec0:{network},depth=128,gro=1",
        *("con=null", "con0=null,fd:1"),
        *("ssl=null", f"ssl0=fd:{line}", f"ssl1=fd:{terminal}"),
        *(f"uml_dir={hardware.work / 'uml'}", f"umid={hardware.name}"),
        hardware.init_variable,
    ]
