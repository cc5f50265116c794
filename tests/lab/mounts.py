"""A campaign of Mounts: `attempts.py` in each node, beside the daemon."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Final

from tests.support.host import wait_until

from .campaigns import WORKS_AGAIN_S, Campaign, Plan
from .cluster import NAMES, Cluster
from .node import Node
from .services import Service

CLIENT: Final = Path(__file__).resolve().parent / "attempts.py"
# A client first ends its last calls; a Mount of it may take two minutes.
CLIENT_END_S: Final = 420.0
KNOWN_S: Final = 60.0


class Client(Service):
    """`attempts.py` on a node."""

    def __init__(self, node: Node, *arguments: str) -> None:
        super().__init__(node, "attempts")
        self._arguments = arguments

    def _argv(self) -> list[str]:
        return ["/usr/bin/python3", "-ISE", str(CLIENT), *self._arguments]

    def _ready(self) -> bool:
        return True


class Mounts(Campaign):
    """
    Mounts and unmounts through the daemons of *cluster*, which is started and whole.

    Each node makes its own volumes: the others try to have them, and are refused, for
    nothing brings the bytes to them.
    """

    def __init__(self, cluster: Cluster, plan: Plan) -> None:
        self._clients = {
            name: Client(cluster[name].node, *plan.arguments(name)) for name in NAMES
        }
        super().__init__(cluster, plan)
        makers = dict(enumerate(NAMES))
        self._maker = {
            volume: makers[number % len(NAMES)]
            for number, volume in enumerate(plan.names)
        }

    def _begin(self) -> None:
        for volume, name in self._maker.items():
            self.cluster[name].made(volume)
            # The first who mounts it has its bytes from then on.
            self.cluster[name].mount(volume, "first")
            self.cluster[name].unmount(volume, "first")
        for name in NAMES:
            wait_until(
                lambda name=name: {*self._maker} <= {*self.cluster[name].names()},
                timeout_s=KNOWN_S,
                what=f"{name} knows the volumes",
            )
        for name in NAMES:
            self._booted(name)

    def _booted(self, name: str) -> None:
        super()._booted(name)
        self._clients[name].start()

    def _end(self) -> None:
        running = [each for each in self._clients.values() if each.running]
        for each in running:
            each.signal(signal.SIGTERM)
        for each in running:
            each.stop(CLIENT_END_S)
        for volume, name in self._maker.items():
            self._await_turn(name, volume)

    def _attempts_log(self, name: str) -> Path:
        return self._clients[name].log

    def _await_turn(self, name: str, volume: str) -> None:
        answers: list[object] = []

        def mounted() -> bool:
            answers.append(self.cluster[name].call("Mount", volume, ID="last"))
            return bool(answers[-1].get("Mountpoint"))  # type: ignore[attr-defined]

        wait_until(
            mounted,
            timeout_s=WORKS_AGAIN_S,
            what=f"{name} mounts {volume} (seed {self.plan.seed})",
            interval_s=0.5,
            evidence=lambda: answers[-1],
        )
        self.cluster[name].unmount(volume, "last")
