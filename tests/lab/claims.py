"""
A campaign of ownership alone: `claimant.py` in each node, on an etcd of three members.

What a daemon does for a Mount besides is left out, so that ten thousand attempts really
meet: the volumes are such that every node may have them, and all want the same few.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Final

from tests.support.host import PYTHON_ENVIRONMENT, wait_until

from .campaigns import WORKS_AGAIN_S, Campaign, Plan
from .cluster import NAMES, Cluster
from .commands import text_of
from .faults import KINDS
from .history import OWNING, Recorder
from .lab import Lab
from .node import Node
from .services import Service

END_S: Final = 60.0
READY: Final = '"event": "claiming"'
# Not the daemons' own: both are nodes of the same names.
PREFIX: Final = "/claims/"


class Claimant(Service):
    """`claimant.py` on *node*."""

    def __init__(self, node: Node, endpoints: str, plan: Plan) -> None:
        super().__init__(node, "claimant")
        self._arguments = [endpoints, PREFIX, node.name, *plan.arguments(node.name)]
        self._mark = 0

    def launch(self) -> None:
        """Start it without waiting for it."""
        self._mark = len(text_of(self.log))
        super().launch()

    def _argv(self) -> list[str]:
        return [sys.executable, "-m", "tests.lab.claimant", *self._arguments]

    def _env(self) -> dict[str, str]:
        return PYTHON_ENVIRONMENT

    def _ready(self) -> bool:
        return READY in text_of(self.log)[self._mark :]


class Claimants(Cluster):
    """Three nodes with etcd and claimants, which *plan* tells what to do."""

    def __init__(self, lab: Lab, plan: Plan) -> None:
        super().__init__(lab)
        for member in self.members.values():
            member.daemon = Claimant(member.node, self.etcd.endpoints, plan)


class Claims(Campaign):
    """See the module's text; *cluster* has not been started."""

    # They have no channel to each other: nobody has a copy to promise anything for.
    kinds = tuple(each for each in KINDS if each != "peers-cut")

    def _begin(self) -> None:
        for name in NAMES:
            self._note_clock(name)
        self.cluster.start()

    def _end(self) -> None:
        marks = {name: len(text_of(self._attempts_log(name))) for name in NAMES}
        wanted = {(name, volume) for name in NAMES for volume in self.plan.names}

        def missing() -> set[tuple[str, str]]:
            recorder = Recorder(offsets_s=self.recorder.offsets_s)
            for name, mark in marks.items():
                recorder.read_events(name, text_of(self._attempts_log(name))[mark:])
            events = recorder.history.events
            return wanted - {(e.node, e.volume) for e in events if e.kind in OWNING}

        wait_until(
            lambda: not missing(),
            timeout_s=WORKS_AGAIN_S,
            what=f"every node owns every volume again (seed {self.plan.seed})",
            evidence=missing,
        )
        ended = Counter(self.cluster[name].daemon.stop(END_S) for name in NAMES)
        assert ended == {0: len(NAMES)}, ended
        locks = self.cluster.etcd.ctl("get", "--prefix", "--keys-only", PREFIX)
        assert "/head" in locks
        assert "/lock" not in locks, locks

    def _attempts_log(self, name: str) -> Path:
        return self.cluster[name].daemon.log
