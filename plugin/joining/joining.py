"""
Taking a single node's volumes into a cluster's records; no byte of them is copied.

Each time, the join is planned anew from both stores, and only missing records are
written, on the condition that they are missing. So a join that was broken off is
finished by repeating it, and one that would overwrite something is refused as a whole,
before anything is written.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from backends.system import clock
from plugin.errors import NodeConflictError, StoreError
from plugin.joining import batches
from plugin.joining.batches import Step
from plugin.joining.joined import joined, note_joined
from plugin.joining.plan import JoinedVolume, Plan, Planner
from plugin.logs import fields
from plugin.membership.directory import NodeDirectory
from plugin.membership.lease import Facts
from plugin.membership.loading import LOADING, refuse_loading
from plugin.membership.nodes import (
    ALIVE,
    NAMES,
    Identity,
    machine_id,
    own_name,
    owner_of,
    refuse_clone,
    refuse_name,
    refuse_protocol,
)
from plugin.store.base import Compare, Store

log = logging.getLogger(__name__)
# Others may change records between our look and our write.
_TRIES_MAX: Final = 5


def joining_identity(node_id: str, configured_name: str) -> Identity:
    """
    Return the identity of the joining node, with all that decides whether it may join.

    Raises:
        ConfigError: the machine's name is no node's name, and none is configured.

    """
    return Identity(
        id=node_id,
        name=own_name(configured_name),
        peer_port=0,
        host_key="",
        public_key="",
        machine_id=machine_id(),
        boot_id=clock.boot_id(),
        session="",
    )


@dataclass(frozen=True, slots=True)
class Joining:
    """
    One node's join.

    *local* is its own store, *cluster* the other one, of identity *cluster_id*. *held*
    are the ids of volumes that containers here have mounted.
    """

    local: Store
    cluster: Store
    cluster_id: str
    own: Identity
    facts: Facts
    renames: Mapping[str, str]
    held: Collection[str]

    def check(self) -> list[JoinedVolume]:
        """
        Return what would become of each volume.

        Raises:
            NodeConflictError: this node cannot join, or a volume cannot.
            StoreError: a store does not answer, or is half of a load.

        """
        return self._plan().moves

    def run(self) -> list[JoinedVolume]:
        """
        Return what became of each volume, when all of them are in the cluster.

        Raises:
            NodeConflictError, StoreError: as `check`; it can be repeated.

        """
        plan = self._plan()
        before = joined(self.facts)
        if before is not None and before.finished:
            return plan.moves  # all is done; store.db does not count any more
        # From here on the daemon does not work with the old records any more, or it
        # would change what has already moved.
        note_joined(self.facts, self.cluster_id, finished=False)
        moves = plan.moves
        for _ in range(_TRIES_MAX):
            if self._write(plan.steps):
                break
            plan = self._plan()
        else:
            raise StoreError("the cluster's records keep changing", hint="repeat it")
        note_joined(self.facts, self.cluster_id, finished=True)
        log.info("joined", extra=fields(cluster=self.cluster_id, volumes=len(moves)))
        return moves

    def _write(self, steps: Sequence[Step]) -> bool:
        """Return whether all *steps* were written; False if one was overtaken."""
        return all(
            self.cluster.transact(batch.conditions, batch.operations).succeeded
            for batch in batches.batches(steps, Compare(LOADING, 0))
        )

    def _plan(self) -> Plan:
        """Return what is to be done now, if the join is allowed."""
        before = joined(self.facts)
        if before is not None and before.cluster != self.cluster_id:
            raise NodeConflictError(
                f"this node's volumes went into cluster {before.cluster}, and this is "
                f"cluster {self.cluster_id}",
                hint="see 'Leave a cluster' in docs/guides/cluster-records.md",
            )
        refuse_loading(self.cluster)
        refuse_loading(self.local)
        self._refuse_node()
        if before is not None and before.finished:
            return Plan([], [])
        planner = Planner(
            own_id=self.own.id,
            renames=self.renames,
            held=self.held,
            again=before is not None,
        )
        return planner.plan(self.local.prefix("")[0], self.cluster.prefix("")[0])

    def _refuse_node(self) -> None:
        """Raise `NodeConflictError` if the cluster cannot have this node."""
        nodes = NodeDirectory(self.cluster, data_only_on=lambda _: {})
        owner = owner_of(self.cluster.get(NAMES + self.own.name))
        refuse_name(self.own, owner, nodes.record(owner))
        if self.cluster.get(ALIVE + self.own.id) is not None:
            refuse_clone(self.own, nodes.record(self.own.id))
        refuse_protocol([each for each in nodes.all() if each.record.id != self.own.id])
