"""
Two machines with Docker 28.5, one swarm, and the plugin for cluster volumes on both.

The first is the swarm's only manager; it has etcd and the bridge that the cables are
plugged into.
"""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any, Final

from tests.support import debian_root
from tests.support.engine import Engine, started_engine
from tests.support.host import Host, wait_until
from tests.support.images import BUSYBOX_IMAGE
from tests.support.managed import ManagedPlugin
from tests.support.network import Network

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ENGINE: Final = "sid"
PLUGIN: Final = "remora-cluster:latest"
ADDRESSES: Final = {"alpha": "10.79.0.1", "beta": "10.79.0.2"}
MANAGER: Final = "alpha"
ETCD: Final = f"http://{ADDRESSES[MANAGER]}:2379"
POOL: Final = "/var/lib/remora/pool/volumes"
DEADLINE_S: Final = 120.0


class Swarm:
    """Made whole; `close` ends it."""

    def __init__(self, built: Path) -> None:
        self.plugins: dict[str, ManagedPlugin] = {}
        self.hosts: dict[str, Host] = {}
        try:
            with debian_root.chosen(ENGINE):
                self._make_machines()
                for name, host in self.hosts.items():
                    self._start_plugin(name, host, built)
            self._join()
        except BaseException:
            self.close()
            raise

    def _make_machines(self) -> None:
        for name in ADDRESSES:
            self.hosts[name] = Host(name)
        self.network = Network(self.hosts[MANAGER], ADDRESSES[MANAGER])
        for name, address in ADDRESSES.items():
            if name != MANAGER:
                self.network.plug(self.hosts[name], address)
        host = self.hosts[MANAGER]
        urls = ("--listen-client-urls", ETCD, "--advertise-client-urls", ETCD)
        log = host.log_path("etcd")
        host.popen(["etcd", "--data-dir", "/run/etcd", *urls], log=log)

    def _start_plugin(self, name: str, host: Host, built: Path) -> None:
        host.path("/var/lib/remora/remora.toml").write_text(
            f'[cluster]\netcd = ["{ETCD}"]\netcd_insecure = true\n'
            f'node_name = "{name}"\npeer_address = "{ADDRESSES[name]}"\n'
        )
        plugin = ManagedPlugin(started_engine(host), PLUGIN)
        plugin.create(built)
        plugin.enable()
        self.plugins[name] = plugin

    def _join(self) -> None:
        self.engine.docker("swarm", "init", "--advertise-addr", ADDRESSES[MANAGER])
        token = self.engine.out("swarm", "join-token", "-q", "worker")
        for name, plugin in self.plugins.items():
            if name != MANAGER:
                plugin.engine.docker(
                    *("swarm", "join", "--token", token),
                    *("--advertise-addr", ADDRESSES[name], ADDRESSES[MANAGER]),
                )
        self.wait(self._all_have_the_plugin, "both nodes have the plugin")

    def _all_have_the_plugin(self) -> bool:
        nodes = [self.engine.inspect("node", name) for name in ADDRESSES]
        return all("CSIInfo" in each["Description"] for each in nodes)

    def close(self) -> None:
        for plugin in self.plugins.values():
            # Orderly, for the engine's cgroups of plugins lie outside its machine's.
            with contextlib.suppress(Exception):
                plugin.engine.stop()
        for host in reversed(self.hosts.values()):
            host.close()

    # Use

    @property
    def engine(self) -> Engine:
        """The manager's."""
        return self.plugins[MANAGER].engine

    def create(self, volume: str, *options: str) -> None:
        """Make a volume that may be on any node."""
        self.engine.docker(
            *("volume", "create", "--driver", PLUGIN, "--type", "mount"),
            *("--scope", "multi", "--sharing", "all", *options, volume),
        )
        self.wait(lambda: self._id_of(volume), f"{volume} is made")

    def _id_of(self, volume: str) -> str:
        info = self.engine.inspect("volume", volume)["ClusterVolume"].get("Info", {})
        return str(info.get("VolumeID", ""))

    def serve(self, name: str, volume: str, script: str, *options: str) -> None:
        """Start a service of one task with the volume at /v."""
        self.engine.docker(
            *("service", "create", "--detach", "--no-resolve-image", "--name", name),
            *("--network", "host", "--stop-grace-period", "2s"),
            *("--mount", f"type=cluster,source={volume},target=/v", *options),
            *(BUSYBOX_IMAGE, "sh", "-c", script),
        )

    def available(self, node: str, availability: str = "active") -> None:
        """Let the node be `active`, `pause` or `drain`."""
        self.engine.docker("node", "update", "--availability", availability, node)

    def running_on(self, service: str) -> str:
        """Return the node of the service's task that runs and is to, or ''."""
        form = "{{.Node}} {{.CurrentState}}"
        filters = ("--filter", "desired-state=running", "--format", form)
        shown = self.engine.out("service", "ps", *filters, service).splitlines()
        found = [line.split()[0] for line in shown if line.split()[1] == "Running"]
        return found[0] if len(found) == 1 else ""

    def wait_running(self, service: str, node: str) -> None:
        self.wait(lambda: self.running_on(service) == node, f"{service} runs on {node}")

    def volume(self, node: str, name: str) -> Any:
        """Return what the node's daemon knows of the volume."""
        shown = self.plugins[node].remora("inspect", name, "--json", check=False)
        found = json.loads(shown.stdout or "{}")
        return found[0] if isinstance(found, list) else found

    def lines(self, node: str, volume: str) -> int:
        """Return how many lines the node has; none is missing before the last."""
        identity = self.volume(node, volume).get("id", "")
        path = self.hosts[node].path(f"{POOL}/{identity}/live/lines")
        found = (
            [int(each) for each in path.read_text().split()] if path.exists() else []
        )
        assert found == list(range(1, len(found) + 1)), found
        return len(found)

    def published(self, node: str) -> list[str]:
        """Return what is mounted for tasks there."""
        return self.plugins[node].mounts()

    def wait(
        self,
        condition: Callable[[], object],
        what: str,
        *,
        timeout_s: float = DEADLINE_S,
    ) -> None:
        """Return when *condition* holds; fail with what Swarm tells."""
        wait_until(
            condition,
            timeout_s=timeout_s,
            interval_s=0.3,
            what=what,
            evidence=self.evidence,
        )

    def evidence(self) -> str:
        """Return nodes, volumes and tasks, as the manager shows them."""
        shown = ["\n"]
        services = self.engine.out("service", "ls", "-q").split()
        for command in (
            ("node", "ls"),
            ("volume", "ls", "--cluster"),
            *(("service", "ps", "--no-trunc", each) for each in services),
        ):
            done = self.engine.docker(*command, check=False)
            shown.append(done.stdout + done.stderr)
        return "\n".join(shown)
