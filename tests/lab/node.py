"""A node of the lab: a machine whose power, network and disks the test holds."""

from __future__ import annotations

import dataclasses
import json
import socket
import subprocess
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.host import REPOSITORY, MountEntry, parse_mountinfo

from .channel import Channel, NodeDownError
from .commands import Commands, text_of
from .disks import SYSTEM_DISK, Disk
from .guest import EXCHANGE
from .kernel import Hardware, Kernel
from .services import Engine, Remora

if TYPE_CHECKING:
    from collections.abc import Callable

    from .lab import Lab

BOOT_DEADLINE_S = 120.0
LOG_TAIL_BYTES = 20_000
SHOW_BLOCKED = "echo w > /proc/sysrq-trigger; dmesg | tail -n 100"
SHOW_DEADLINE_S = 10.0
KERNEL_MODULES = ("ipv6", "loop", "fuse", "tun")
# What every client of NFS runs: without statd there are no version 3 mounts with locks.
SERVICES = "rpcbind -w; rpc.statd --no-notify"
# The engine and the daemon do not work on an overlay: they get a directory of the disk.
BINDS = {
    "/data": "data",
    "/var/lib/docker": "docker",
    "/var/lib/remora": "remora",
}


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """What a test asks of one node."""

    name: str
    disks: tuple[Disk, ...] = ()
    memory: str = "768M"


class Node(Commands):
    """See the module's text; made by a `Lab`."""

    def __init__(self, lab: Lab, spec: NodeSpec, number: int) -> None:
        self.work = lab.work / spec.name
        super().__init__(spec.name, self.work / "exchange")
        self.lab = lab
        self.spec = spec
        self.number = number
        self.ipv4 = f"10.77.0.{number}"
        self.ipv6 = f"fd77::{number}"
        self.mac = f"02:77:00:00:00:{number:02x}"
        self.tap = f"tap{number}"
        self.console = self.work / "console.log"
        # Called after every boot, with the network up: what a real machine's init does.
        self.on_boot: list[Callable[[], object]] = []
        self._logs: dict[Path, int] = {self.console: 0}
        self._kernel: Kernel | None = None
        self._machine_id = uuid.uuid4().hex
        self._disks = [
            disk.make(self.work / f"disk{index}")
            for index, disk in enumerate((SYSTEM_DISK, *spec.disks))
        ]

    # Power

    def launch(self) -> None:
        """Switch the node on without waiting for it."""
        if self._kernel is not None:
            raise RuntimeError(f"{self.name} is on")
        config = self.work / "node.json"
        config.write_text(json.dumps(self._config()))
        self._kernel = Kernel(
            Hardware(
                name=self.name,
                program=self.lab.kernel.program,
                memory=self.spec.memory,
                disks=self._disks,
                tap=self.tap,
                mac=self.mac,
                network_namespace=self.lab.network_namespace,
                init_variable=f"remora_lab_node={config}",
                work=self.work,
            )
        )
        self._channel = Channel(self._kernel.line)

    def wait_ready(self, timeout_s: float = BOOT_DEADLINE_S) -> None:
        """Return when the node has booted and `on_boot` is done."""
        assert self._channel is not None
        try:
            self._channel.booted.next(timeout_s)
        except (NodeDownError, TimeoutError) as error:
            tail = text_of(self.console)[-3000:]
            raise AssertionError(
                f"{self.name} did not boot: {error}\n{tail}"
            ) from error
        for action in self.on_boot:
            action()

    def boot(self) -> None:
        """Switch the node on, with the disks as they are; return when it is up."""
        self.launch()
        self.wait_ready()

    def power_off(self) -> None:
        """Fail the node's power: nothing is flushed, every process is gone."""
        kernel, self._kernel = self._kernel, None
        channel, self._channel = self._channel, None
        if kernel is None or channel is None:
            raise RuntimeError(f"{self.name} is off")
        kernel.power_off()
        channel.close()

    @property
    def powered(self) -> bool:
        """Whether the node is on and its kernel has not ended."""
        return self._kernel is not None and self._kernel.running

    @property
    def switched_on(self) -> bool:
        """Whether the node is on, be its kernel dead or alive."""
        return self._kernel is not None

    @property
    def terminal(self) -> socket.socket:
        """The other end of the second serial line; see `start_terminal`."""
        if self._kernel is None:
            raise NodeDownError(f"{self.name} is off")
        return self._kernel.terminal

    # Network

    def cut(self) -> None:
        """Silently drop every packet from and to the node."""
        self.lab.unplug(self)

    def heal(self) -> None:
        """Let the node's packets through again."""
        self.lab.plug_in(self)

    # Files

    def put(
        self, content: bytes | str | Path, inside: str, *, mode: int = 0o644
    ) -> None:
        """Write *content* (or the host's file of that path) to *inside*."""
        data = content.read_bytes() if isinstance(content, Path) else content
        data = data.encode() if isinstance(data, str) else data
        script = 'mkdir -p "$(dirname "$1")"; cat > "$1"; chmod "$2" "$1"'
        self.run(["sh", "-euc", script, "put", inside, f"{mode:o}"], stdin=data)

    def get(self, inside: str) -> bytes:
        """Return the content of the file *inside*."""
        passed = self.exchange / f"get-{uuid.uuid4()}"
        try:
            self.run(["cp", "--", inside, f"{EXCHANGE}/{passed.name}"])
            return passed.read_bytes()
        finally:
            passed.unlink(missing_ok=True)

    def mounts(self, below: str = "/") -> list[MountEntry]:
        """Return the node's mounts strictly below the directory *below*."""
        text = self.out(["cat", "/proc/1/mountinfo"])
        # The sources' escapes too are undone: an export's path may have blanks.
        entries = [
            dataclasses.replace(entry, source=entry.source.replace("\\040", " "))
            for entry in parse_mountinfo(text)
        ]
        prefix = below.rstrip("/") + "/"
        return [each for each in entries if each.mount_point.startswith(prefix)]

    # Services

    def start_remora(self, **settings: str) -> Remora:
        """Return the daemon, started with *settings* of `[daemon]`, when it answers."""
        remora = Remora(self, **settings)
        remora.start()
        return remora

    def start_docker(self, *extra_args: str) -> Engine:
        """Return the engine, started, with the busybox image, when it answers."""
        engine = Engine(self, *extra_args)
        engine.start()
        engine.load_busybox()
        return engine

    # Logs

    def log_path(self, name: str) -> Path:
        """Return the file for the log *name*; the end of it is shown on a failure."""
        path = self.exchange / f"{name}.log"
        self._logs.setdefault(path, 0)
        return path

    def mark_logs(self) -> None:
        """Let `new_log_text` begin with what is written from now on."""
        for path in self._logs:
            self._logs[path] = path.stat().st_size if path.exists() else 0

    def new_log_text(self) -> dict[str, str]:
        """Return for every log what was written since `mark_logs`, at most its end."""
        texts = {}
        for path, mark in self._logs.items():
            if path.exists():
                with path.open("rb") as log:
                    log.seek(max(mark, path.stat().st_size - LOG_TAIL_BYTES))
                    text = log.read().decode(errors="replace")
                texts[f"{self.name}: {path.name}"] = text
        return texts

    def blocked_tasks(self) -> str:
        """Return where tasks wait that nothing can interrupt, as the kernel tells."""
        if not self.powered:
            return ""
        try:
            done = self.run(SHOW_BLOCKED, timeout_s=SHOW_DEADLINE_S, check=False)
        except (AssertionError, subprocess.TimeoutExpired, NodeDownError) as error:
            return str(error)
        return done.stdout

    def _config(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "machine_id": self._machine_id,
            "hosts": self.lab.hosts_file(),
            "modules": self.lab.kernel.modules,
            "load": KERNEL_MODULES,
            "binds": BINDS,
            "keep": [str(REPOSITORY), sys.prefix],
            "exchange": str(self.exchange),
            "disks": [
                {
                    "kind": disk.kind,
                    "at": disk.at,
                    "options": disk.options,
                    "device": dev,
                }
                for dev, disk in zip(
                    ("/dev/ubdb", "/dev/ubdc", "/dev/ubdd"),
                    self.spec.disks,
                    strict=False,
                )
            ],
            "network": "\n".join(
                [
                    "link set lo up",
                    f"address add {self.ipv4}/24 dev vec0",
                    f"address add {self.ipv6}/64 dev vec0 nodad",
                    "link set vec0 up",
                    "",
                ]
            ),
            "services": SERVICES,
        }
