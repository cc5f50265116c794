"""
A lab: nodes with kernels of their own on one network, in this machine.

The network is a namespace with a bridge; it and everything in it goes with the process
that holds it, a `cat` that waits for the end of its input, which comes when this
process ends, however it does. What then is left is a work directory; the next lab
removes it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

from tests.support.host import SYSTEM_PATH
from tests.support.processes import signal_all

from . import kernels
from .kernel import END_DEADLINE_S
from .node import Node, NodeSpec

WORK_ROOT = Path(os.environ.get("REMORA_LAB_WORK", "/var/tmp/remora-lab"))
BRIDGE = "br0"
GATEWAY_IPV4, GATEWAY_IPV6 = "10.77.0.254", "fd77::fe"
COMMAND_DEADLINE_S = 30.0
PROGRAMS = (
    *("unshare", "nsenter", "ip", "bridge", "bash", "modprobe"),
    *("mkfs.ext4", "mkfs.xfs", "mkfs.btrfs"),
    *("mount.nfs", "rpcbind", "rpc.statd", "rpc.nfsd", "rpc.mountd", "exportfs"),
)


def missing() -> str:
    """Return what this machine lacks for a lab, or ''."""
    if os.geteuid() != 0:
        return "root"
    for program in PROGRAMS:
        if shutil.which(program, path=SYSTEM_PATH) is None:
            return program
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "/dev/net/tun"
    allowed = subprocess.run(
        ["unshare", "--net", "--pid", "--fork", "true"], check=False, timeout=10
    )
    return "leave to make namespaces" if allowed.returncode else ""


@dataclass(frozen=True, slots=True)
class Topology:
    """
    The nodes that a test asks for.

    Modules whose topologies are equal and have a name (``shared_as``) share one lab.
    """

    nodes: tuple[NodeSpec, ...]
    shared_as: str = ""

    @classmethod
    def of(cls, *nodes: str | NodeSpec, shared_as: str = "") -> Self:
        """Return the topology of *nodes*; a mere name gets a node without extras."""
        specs = (NodeSpec(each) if isinstance(each, str) else each for each in nodes)
        return cls(tuple(specs), shared_as)


class Lab:
    """See the module's text. Made with its nodes off; `boot` switches all on."""

    alive: ClassVar[list[Lab]] = []
    _numbers: ClassVar[itertools.count[int]] = itertools.count(1)

    def __init__(self, topology: Topology) -> None:
        sweep_leftovers()
        # The kernel of every node, also of those that boot again later.
        self.kernel = kernels.chosen()
        self.work = WORK_ROOT / f"{_identity(os.getpid())}-{next(self._numbers)}"
        self.work.mkdir(parents=True)
        Lab.alive.append(self)
        self.nodes: dict[str, Node] = {}
        self._separated: set[Node] = set()
        self._unplugged: set[Node] = set()
        self._holder = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "echo; exec cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"PATH": SYSTEM_PATH},
        )
        try:
            assert self._holder.stdout is not None
            self._holder.stdout.readline()
            self.network_namespace = f"/proc/{self._holder.pid}/ns/net"
            for number, spec in enumerate(topology.nodes, 1):
                self.nodes[spec.name] = Node(self, spec, number)
            self._make_network()
        except BaseException:
            self.close()
            raise

    def __getitem__(self, name: str) -> Node:
        return self.nodes[name]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Power

    def boot(self) -> None:
        """Switch on every node that is off, side by side; return when all are up."""
        booting = [node for node in self.nodes.values() if not node.switched_on]
        for node in booting:
            node.launch()
        for node in booting:
            node.wait_ready()

    def restore(self) -> None:
        """Bring the network and the nodes that are off or have crashed up again."""
        self.heal()
        for node in self.nodes.values():
            if node.switched_on and not node.powered:
                node.power_off()
        self.boot()

    def close(self) -> None:
        """Switch everything off and remove it."""
        if self not in Lab.alive:
            return
        Lab.alive.remove(self)
        with contextlib.ExitStack() as stack:
            stack.callback(shutil.rmtree, self.work, ignore_errors=True)
            stack.callback(self._end_holder)
            for node in self.nodes.values():
                if node.switched_on:
                    stack.callback(node.power_off)

    # Network

    def separate(self, one: Node, other: Node) -> None:
        """Silently drop what *one* and *other* send each other, and only that."""
        self._separated |= {one, other}
        for node in {one, other} - self._unplugged:
            self._isolate(node)

    def heal(self) -> None:
        """End every cut and separation."""
        changed = self._separated | self._unplugged
        self._separated.clear()
        for node in changed:
            self.plug_in(node)

    def unplug(self, node: Node) -> None:
        """Take *node* off the bridge: what it sends ends in a tap that nobody reads."""
        # The tap stays up: with it down the node would see its packets refused. The
        # port's state would do too, but goes back to forwarding when a node boots.
        self._unplugged.add(node)
        self.command("ip", "link", "set", node.tap, "nomaster")

    def plug_in(self, node: Node) -> None:
        """Put *node* on the bridge again."""
        self._unplugged.discard(node)
        self.command("ip", "link", "set", node.tap, "master", BRIDGE)
        self._isolate(node)

    def command(self, *argv: str) -> str:
        """Return what *argv* prints, run on this machine in the lab's network."""
        done = subprocess.run(
            ["nsenter", f"--net={self.network_namespace}", "--", *argv],
            capture_output=True,
            text=True,
            timeout=COMMAND_DEADLINE_S,
            env={"PATH": SYSTEM_PATH},
            check=False,
        )
        if done.returncode != 0:
            raise AssertionError(f"{' '.join(argv)}: {done.stdout}{done.stderr}")
        return done.stdout

    def hosts_file(self) -> str:
        """Return the nodes' /etc/hosts: NAME is IPv4, NAME-6 is IPv6."""
        lines = ["127.0.0.1 localhost", "::1 localhost"]
        for node in self.nodes.values():
            lines += [f"{node.ipv4} {node.name}", f"{node.ipv6} {node.name}-6"]
        return "\n".join(lines) + "\n"

    def _isolate(self, node: Node) -> None:
        """Let the bridge forward nothing between *node* and others that are so."""
        on = "on" if node in self._separated else "off"
        self.command("bridge", "link", "set", "dev", node.tap, "isolated", on)

    def _make_network(self) -> None:
        lines = [
            "link set lo up",
            f"link add {BRIDGE} type bridge stp_state 0 mcast_snooping 0",
            f"address add {GATEWAY_IPV4}/24 dev {BRIDGE}",
            f"address add {GATEWAY_IPV6}/64 dev {BRIDGE} nodad",
            f"link set {BRIDGE} up",
        ]
        for node in self.nodes.values():
            lines += [
                f"tuntap add dev {node.tap} mode tap",
                # Off the bridge it is to be silent: no address, no answers to ARP.
                f"link set {node.tap} arp off addrgenmode none",
                f"link set {node.tap} master {BRIDGE} up",
            ]
        batch = self.work / "network"
        batch.write_text("\n".join(lines) + "\n")
        self.command("ip", "-batch", str(batch))

    def _end_holder(self) -> None:
        for stream in (self._holder.stdin, self._holder.stdout):
            assert stream is not None
            stream.close()
        try:
            self._holder.wait(timeout=END_DEADLINE_S)
        finally:
            self._holder.kill()


def sweep_leftovers() -> None:
    """Remove the work directories whose test process has ended."""
    WORK_ROOT.mkdir(parents=True, exist_ok=True)
    for work in WORK_ROOT.iterdir():
        owner, _, _ = work.name.rpartition("-")
        pid = owner.partition("-")[0]
        if pid.isdigit() and _identity(int(pid)) != owner:
            # The kernel has ended them or is about to; this is for the rest.
            signal_all(processes_of(work), signal.SIGKILL)
            shutil.rmtree(work, ignore_errors=True)


def processes_of(work: Path) -> list[int]:
    """Return the processes whose command line names the work directory *work*."""
    found = []
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit():
            with contextlib.suppress(OSError):
                if f"{work}/".encode() in (directory / "cmdline").read_bytes():
                    found.append(int(directory.name))
    return found


def _identity(pid: int) -> str:
    """Return a name for the process *pid* that no later process shares, or ''."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    return f"{pid}-{stat.rpartition(')')[2].split()[19]}"
