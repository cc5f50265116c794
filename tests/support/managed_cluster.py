"""
A cluster of a managed plugin and a daemon beside it, in the network of one `Host`.

The daemon is an `Owner` as in the tests of ownership, with the host's network; it talks
to the plugin as to a daemon on another machine.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tests.support import etcd
from tests.support.host import Host, wait_until
from tests.support.owners import WAIT_S, Owner

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.engine import Engine
    from tests.support.managed import ManagedPlugin

ETCD = "http://127.0.0.1:2379"
PREFIX = "/remora/"
RECORDS = f"{PREFIX}records/"
NAME, ADDRESS, PORT = "managed", "127.0.0.2", 7425
# The half of its settings that does not come from the plugin's own.
CONFIGURATION = f"""\
[cluster]
node_name = "{NAME}"
peer_port = {PORT}
"""


class Neighbour(Owner):
    """A node of the cluster whose processes are in the network of *host*."""

    def __init__(self, name: str, host: Host, **arguments: Any) -> None:
        self._network = f"/proc/{host.pid}/ns/net"
        member = etcd.Member("one", host.work, "127.0.0.1")
        super().__init__(name, etcd.Cluster([member]), PREFIX, **arguments)

    def inside(self, *command: str) -> list[str]:
        """Return the command that runs *command* in the node's namespaces."""
        found = super().inside(*command)
        at = found.index("nsenter") + 1
        return [*found[:at], f"--net={self._network}", *found[at:]]


class PluginNode:
    """The plugin, as the node of a cluster."""

    def __init__(self, plugin: ManagedPlugin) -> None:
        self.plugin = plugin
        self.host = plugin.host

    @property
    def engine(self) -> Engine:
        return self.plugin.engine

    def start_etcd(self) -> None:
        """Start etcd in the host; return when it answers."""
        options = ("--listen-client-urls", ETCD, "--advertise-client-urls", ETCD)
        log = self.host.log_path("etcd")
        self.host.popen(["etcd", "--data-dir", "/run/etcd", *options], log=log)
        health = ["etcdctl", "endpoint", "health"]
        wait_until(
            lambda: not self.host.run(health, check=False).returncode,
            timeout_s=WAIT_S,
            what="etcd answers",
            evidence=lambda: log.read_text(errors="replace")[-3000:],
        )

    def etcdctl(self, *arguments: str) -> str:
        """Return what etcdctl prints."""
        command = ["env", "ETCDCTL_API=3", "etcdctl", *arguments]
        return self.host.run(command).stdout

    def become(self, directory: Path) -> None:
        """Make the plugin of *directory* a node: by a file and by its settings."""
        self.host.path("/var/lib/remora/remora.toml").write_text(CONFIGURATION)
        self.plugin.create(directory)
        settings = (f"REMORA_ETCD={ETCD}", f"REMORA_PEER_ADDRESS={ADDRESS}")
        self.engine.docker("plugin", "set", self.plugin.name, *settings)
        self.plugin.enable()
        wait_until(self.is_ready, timeout_s=WAIT_S, what="the plugin is a node")

    def is_ready(self) -> bool:
        return bool(self.row(NAME)["state"] == "ready")

    def row(self, name: str) -> Any:
        """Return what the plugin's node knows of the node *name*."""
        shown = json.loads(self.plugin.remora("node", "ls", "--json").stdout)
        [found] = [each for each in shown if each["name"] == name] or [{"state": ""}]
        return found

    def lease(self) -> int:
        """Return the lease that what the node owns hangs on."""
        key = f"{RECORDS}alive/{self.row(NAME)['id']}"
        [found] = json.loads(self.etcdctl("get", key, "--write-out=json"))["kvs"]
        return int(found["lease"])

    def guard_log(self) -> str:
        return self.host.path("/var/lib/remora/fencing/guard.log").read_text()

    def guards(self) -> list[int]:
        """Return the process ids of guards, as this machine counts."""
        done = self.host.run(["pgrep", "-f", "plugin.fencing.guard import main"])
        return [int(each) for each in done.stdout.split()]

    def status(self, pid: int, *names: str) -> dict[str, str]:
        """Return lines of /proc/PID/status of a process of the host."""
        lines = self.host.path(f"/proc/{pid}/status").read_text().splitlines()
        pairs = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        return {each: pairs[each].strip() for each in names}
