"""A Docker Swarm of the nodes of a `Cluster`, all of them managers."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Final
from urllib.parse import quote

from tests.support.host import wait_until

from .cluster import NAMES, Cluster
from .services import Engine

# Swarm notices a dead node after 15 s, elects another leader in about as long, and
# gives nodes half a minute to come back to that.
TASK_DEADLINE_S: Final = 150.0
SWARM_DEADLINE_S: Final = 120.0


class Swarm:
    """Engines beside the daemons of *cluster*; made with every engine off."""

    def __init__(self, cluster: Cluster, *engine_args: str) -> None:
        self.cluster = cluster
        self.engines: Mapping[str, Engine] = {
            name: Engine(cluster.lab[name], *engine_args) for name in NAMES
        }

    # Life

    def start(self) -> None:
        """Start the engines and make a swarm of them."""
        self._start_engines()
        first, *others = NAMES
        for engine in self.engines.values():
            engine.load_busybox()
        self.engines[first].docker(
            "swarm", "init", "--advertise-addr", self._address(first)
        )
        token = self.engines[first].out("swarm", "join-token", "-q", "manager")
        for name in others:
            self.engines[name].docker(
                *("swarm", "join", "--advertise-addr", self._address(name)),
                *("--token", token, self._address(first)),
            )
        self._wait_ready()

    def restore(self) -> None:
        """Let every node take tasks again, after the cluster is restored."""
        self._start_engines()
        self._wait_ready()
        for name in NAMES:
            self.available(name)

    def stop(self) -> None:
        """Stop the engines."""
        for engine in self.engines.values():
            if engine.running:
                engine.stop()

    def _start_engines(self) -> None:
        stopped = [each for each in self.engines.values() if not each.running]
        for engine in stopped:
            engine.launch()
        for engine in stopped:
            engine.wait_ready()
            # Swarm gives tasks to nodes whose engine has met the plugin: an engine
            # looks for one when it is first asked for something of it.
            engine.docker("volume", "ls")

    def _wait_ready(self) -> None:
        def ready() -> bool:
            nodes = self.manager.get("/nodes")
            return len(nodes) == len(NAMES) and all(
                each["Status"]["State"] == "ready"
                and each["ManagerStatus"]["Reachability"] == "reachable"
                for each in nodes
            )

        wait_until(
            lambda: quietly(ready),
            timeout_s=SWARM_DEADLINE_S,
            what="a whole swarm",
            interval_s=0.5,
        )

    def _address(self, name: str) -> str:
        return self.cluster.lab[name].ipv4

    # Use

    @property
    def manager(self) -> Engine:
        """An engine that is on."""
        return next(each for each in self.engines.values() if each.running)

    def out(self, *args: str, timeout_s: float = 60.0) -> str:
        """Return what `docker ARGS...` prints on a manager."""
        return self.manager.out(*args, timeout_s=timeout_s)

    def available(self, name: str, availability: str = "active") -> None:
        """Let the node *name* be `active`, `pause` or `drain`."""
        self.out("node", "update", "--availability", availability, name)

    def leader(self) -> str:
        """Return the name of the node that leads the managers."""
        (name,) = [
            each["Description"]["Hostname"]
            for each in self.manager.get("/nodes")
            if each["ManagerStatus"].get("Leader")
        ]
        return name

    def create(self, service: str, *options: str, command: Sequence[str]) -> None:
        """Create a service of one task, without waiting for the task."""
        self.out(
            *("service", "create", "--detach", "--no-resolve-image", "--name", service),
            *("--network", "host", *options, *command),
        )

    def running_on(self, service: str) -> str:
        """Return the one node that runs a task of *service* as it should, or ''."""
        filters = {"service": [service], "desired-state": ["running"]}
        tasks = self.manager.get(f"/tasks?filters={quote(json.dumps(filters))}")
        if [each["Status"]["State"] for each in tasks] != ["running"]:
            return ""
        node = self.manager.get(f"/nodes/{tasks[0]['NodeID']}")
        return str(node["Description"]["Hostname"])

    def wait_running(self, service: str, *, but_not_on: str = "") -> str:
        """Return the node that runs *service*'s task, as soon as there is one."""
        found: list[str] = []

        def running() -> bool:
            found.append(self.running_on(service))
            return found[-1] not in ("", but_not_on)

        wait_until(
            lambda: quietly(running),
            timeout_s=TASK_DEADLINE_S,
            what=f"{service} runs",
            evidence=lambda: self.history(service),
            interval_s=0.5,
        )
        return found[-1]

    def history(self, service: str) -> str:
        """Return what Swarm tells of the tasks of *service*."""
        done = self.manager.docker("service", "ps", "--no-trunc", service, check=False)
        return done.stdout + done.stderr

    def remove(self, *services: str) -> None:
        """Remove services, and wait for the end of their containers."""
        self.out("service", "rm", *services)
        for engine in self.engines.values():
            wait_until(
                lambda e=engine: e.get("/containers/json") == [],
                timeout_s=SWARM_DEADLINE_S,
                interval_s=0.5,
                what=f"no container on {engine.node.name}",
            )


def quietly(condition: Callable[[], bool]) -> bool:
    """Return *condition*'s answer; a manager without a leader cannot tell."""
    with contextlib.suppress(AssertionError, OSError):
        return bool(condition())
    return False
