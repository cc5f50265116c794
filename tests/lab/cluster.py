"""
Three nodes that are one cluster of the daemon, on an etcd of three members.

Everything that the tests break is broken here, and `restore` mends all of it: power,
cuts, filters, frozen and dead processes, clocks.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tests.support.host import wait_until

from .commands import text_of
from .etcd import CLIENT_PORT, EtcdCluster
from .history import objects
from .lab import Lab, Topology
from .node import Node
from .services import Remora, Service

NAMES: Final = ("alpha", "beta", "gamma")
TOPOLOGY: Final = Topology.of(*NAMES)
# For modules that need nothing of a cluster but that it works.
SHARED: Final = Topology.of(*NAMES, shared_as="cluster")
# Each volume's bytes lie in a directory `live` below its id.
POOL: Final = "/var/lib/remora/pool/volumes"
# The daemon's channel to its peers.
CHANNEL_PORT: Final = 7424
# A lease of a node's last boot has to end first, which may take twice its time.
MEMBERS_DEADLINE_S: Final = 60.0
# What is judged compares the clocks of two nodes; see `invariants.SKEW_S`.
CLOCK_READING_S: Final = 0.15
CLOCK_READINGS_MAX: Final = 40
# Packets are dropped by traffic control, tc-flower(8): the nodes' kernels have neither
# nftables for IP nor, since 6.16, the older tables.
LOAD_FILTER: Final = "modprobe -a sch_ingress cls_flower act_gact"
LINKS: Final = ("lo", "vec0")


@dataclass(frozen=True, slots=True)
class BootClock:
    """What a node's boot clock showed at a moment of this machine's monotonic one."""

    boot: str
    uptime_s: float
    at_s: float


class Member:
    """The daemon on one node, spoken to as the engine does."""

    def __init__(self, node: Node, endpoints: str, **settings: str) -> None:
        self.node = node
        # Most tests that are refused do not want to wait for it.
        settings = {"mount_wait_s": "1", **settings}
        # The lab's network is the lab's alone.
        settings = {"etcd_insecure": "true", **settings}
        self.remora = Remora(node, etcd=endpoints, node_name=node.name, **settings)
        # What is started, killed and frozen; a campaign of claims has another one.
        self.daemon: Service = self.remora
        self.frozen = self.filtered = self.clock_set = False
        node.on_boot.append(self._forget_faults)

    def call(self, method: str, name: str, **more: Any) -> dict[str, Any]:
        """Return the answer to a call about the volume *name*."""
        return self.remora.call(method, {"Name": name, **more})

    def made(self, name: str, **options: str) -> None:
        """Create, and see that it succeeds."""
        assert self.call("Create", name, Opts=options) == {}

    def mount(self, name: str, mount_id: str = "id") -> str:
        """Return the mount point of *name*."""
        answer = self.call("Mount", name, ID=mount_id)
        assert "Mountpoint" in answer, answer
        return str(answer["Mountpoint"])

    def unmount(self, name: str, mount_id: str = "id") -> None:
        """Unmount, and see that it succeeds."""
        assert self.call("Unmount", name, ID=mount_id) == {}

    def refusal(self, method: str, name: str, **more: Any) -> str:
        """Return the error that *method* answers."""
        answer = self.call(method, name, **more)
        assert answer.get("Err"), answer
        return str(answer["Err"])

    def names(self) -> list[str]:
        """Return the volumes that List tells."""
        answer = self.remora.call("List", {}, timeout_s=10)
        return sorted(each["Name"] for each in answer["Volumes"])

    def nodes(self) -> dict[str, str]:
        """Return the state of each node, by name, as this one knows it."""
        status, nodes = self.remora.control("GET", "/v1/nodes")
        assert status == 200, nodes
        return {each["name"]: each["state"] for each in nodes}

    def health(self) -> str:
        """Return 'ok', or what keeps the node from being a member."""
        status, answer = self.remora.control("GET", "/v1/status")
        assert status == 200, answer
        return str(answer["node"]["health"])

    def facts(self, name: str) -> dict[str, Any]:
        """Return what the volume's Status says."""
        return dict(self.call("Get", name)["Volume"]["Status"])

    def events(self, volume: str) -> list[dict[str, Any]]:
        """Return what the daemon has logged of its ownership of *volume*."""
        found = objects(text_of(self.remora.log))
        return [each for each in found if "epoch" in each and each["volume"] == volume]

    def boot_clock(self) -> BootClock:
        """
        Return the node's boot id and its boot clock, beside this machine's.

        It is read until that is quick, for half of what it takes may be wrong.
        """
        best, best_took_s = None, float("inf")
        for _ in range(CLOCK_READINGS_MAX):
            sent_s = time.monotonic()
            shown = self.node.out("cat /proc/sys/kernel/random/boot_id /proc/uptime")
            took_s = time.monotonic() - sent_s
            boot, uptime_s, _idle_s = shown.split()
            if took_s < best_took_s:
                best = BootClock(boot, float(uptime_s), sent_s + took_s / 2)
                best_took_s = took_s
            if took_s < CLOCK_READING_S:
                break
        assert best is not None
        return best

    def _forget_faults(self) -> None:
        self.frozen = self.filtered = self.clock_set = False


class Cluster:
    """See the module's text; made with every service off."""

    def __init__(
        self,
        lab: Lab,
        etcd_nodes: Sequence[str] = NAMES,
        settings: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        """*settings* of the configuration, for each node that has some of its own."""
        self.lab = lab
        self.etcd = EtcdCluster(lab, etcd_nodes)
        own = settings or {}
        self.members: Mapping[str, Member] = {
            name: Member(lab[name], self.etcd.endpoints, **own.get(name, {}))
            for name in NAMES
        }

    def __getitem__(self, name: str) -> Member:
        return self.members[name]

    # Life

    def start(self) -> None:
        """Start whatever does not run; return when all of it answers."""
        self.etcd.start_all()
        for name in NAMES:
            self.launch_daemon(name)
        # All of them: one may have been launched by somebody who did not wait.
        for name in NAMES:
            self[name].daemon.wait_ready()

    def wait_members(self) -> None:
        """Return when every node has its lease: after a power failure that takes it."""
        for name in NAMES:
            wait_until(
                lambda member=self[name]: member.health() == "ok",
                timeout_s=MEMBERS_DEADLINE_S,
                what=f"{name} has its lease",
                evidence=self[name].health,
            )

    def stop(self) -> None:
        """Stop the daemons, then etcd; on nodes that are on."""
        for member in self.members.values():
            self.signal_daemon(member.node.name, signal.SIGCONT)
            if member.daemon.running:
                member.daemon.stop()
        self.etcd.stop_all()

    def restore(self) -> None:
        """Mend everything; return when all of it works."""
        self.lab.restore()
        for name, member in self.members.items():
            self.end_filters(name)
            if member.clock_set:
                self.set_clock(name, 0)
            self.signal_daemon(name, signal.SIGCONT)
        self.etcd.restore()
        self.start()

    def boot(self, name: str) -> None:
        """Switch the node *name* on, and what runs there, without waiting for that."""
        self.lab[name].boot()
        if name in self.etcd.members:
            self.etcd.launch(name)
        if name in self.members:
            self.launch_daemon(name)

    def launch_daemon(self, name: str) -> bool:
        """Start the daemon of *name* without waiting; return whether it was off."""
        member = self[name]
        if not member.node.powered or member.daemon.running:
            return False
        member.frozen = False
        member.daemon.launch()
        return True

    def kill_daemon(self, name: str) -> None:
        """Kill the daemon of *name*, if it runs; what it started lives on."""
        self[name].frozen = False
        if self[name].daemon.running:
            self[name].daemon.kill()

    def signal_daemon(self, name: str, number: int) -> None:
        """Stop (SIGSTOP) the daemon of *name*, or let it run on (SIGCONT)."""
        member = self[name]
        if not member.daemon.running or member.frozen == (number == signal.SIGSTOP):
            return
        member.daemon.signal(number)
        member.frozen = number == signal.SIGSTOP

    # Network

    def cut_from_etcd(self, name: str) -> None:
        """Drop what the node *name* asks any member of etcd, its own one included."""
        self._filter(
            name,
            f"dev lo ingress %s dst_port {CLIENT_PORT}",
            f"dev vec0 egress %s dst_port {CLIENT_PORT}",
            f"dev vec0 ingress %s src_port {CLIENT_PORT}",
        )

    def cut_from_peers(self, name: str) -> None:
        """Drop what daemons send the one on *name*, and it them; etcd is reached."""
        self._filter(
            name,
            f"dev lo ingress %s dst_port {CHANNEL_PORT}",
            *(
                f"dev vec0 {way} %s {end} {CHANNEL_PORT}"
                for way in ("ingress", "egress")
                for end in ("src_port", "dst_port")
            ),
        )

    def end_filters(self, name: str) -> None:
        """End `cut_from_etcd` and `cut_from_peers`."""
        if self[name].filtered:
            ends = (f"tc qdisc del dev {link} clsact" for link in LINKS)
            self[name].node.run("\n".join(ends))
            self[name].filtered = False

    def _filter(self, name: str, *rules: str) -> None:
        lines = [LOAD_FILTER]
        lines += [f"tc qdisc replace dev {link} clsact" for link in LINKS]
        for rule in rules:
            for protocol in ("ip", "ipv6"):
                dropped = f"protocol {protocol} flower ip_proto tcp"
                lines.append(f"tc filter add {rule % dropped} action drop")
        self[name].filtered = True
        self[name].node.run("\n".join(lines))

    # Time

    def set_clock(self, name: str, offset_s: float) -> None:
        """Set the wall clock of *name* to this machine's and *offset_s* on top."""
        now_s = time.clock_gettime(time.CLOCK_REALTIME) + offset_s
        self[name].node.run(["date", "-s", f"@{now_s:.3f}"])
        self[name].clock_set = bool(offset_s)
