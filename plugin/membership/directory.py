"""The cluster's nodes as their records show them, and what people do to them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from backends.system.decoding import from_json
from plugin.errors import ChangedError, NodeConflictError, NodeNotFoundError
from plugin.logs import fields
from plugin.membership.nodes import (
    ALIVE,
    FORMER_NODES,
    NAMES,
    NODES,
    NodeRecord,
    NodeView,
    node_ids,
    owner_of,
)
from plugin.membership.quarantine_records import QuarantineRecords
from plugin.membership.snapshot_records import SnapshotRecords
from plugin.store.base import Compare, Delete, Put, Store
from plugin.store.contention import attempted
from plugin.store.values import Values, readable

log = logging.getLogger(__name__)
_REFRESH_DEADLINE_S: Final = 3.5
_NAMED_MAX: Final = 20
_VOLUMES_NAMED_MAX: Final = 5


class NodeDirectory:
    """
    Reads and changes nodes' records; reads answer from local knowledge.

    *data_only_on* returns the volumes with data that only the node of a given id has,
    by the part of their data. *always_alive* is the id of a node that is alone and
    needs no lease to be alive.
    """

    def __init__(
        self,
        store: Store,
        *,
        data_only_on: Callable[[str], Mapping[str, list[str]]],
        always_alive: str = "",
    ) -> None:
        self._store = store
        self._records = Values(store, NodeRecord, prefix=NODES)
        self.snapshots = SnapshotRecords(store)
        self._data_only_on = data_only_on
        self._always_alive = always_alive
        self._offsets_s: dict[str, float] = {}
        self._lock = threading.Lock()

    def all(self) -> list[NodeView]:
        """Return all nodes, sorted by name."""
        alive = {each.key for each in self._store.prefix(ALIVE)[0]}
        found = [
            NodeView(
                record,
                node_id == self._always_alive or ALIVE + node_id in alive,
                self._offsets_s.get(node_id),
            )
            for node_id, record in self._records.read().values.items()
        ]
        return sorted(found, key=lambda each: each.record.name)

    def lives(self, node_id: str) -> bool:
        """Return whether the daemon of that node runs, as far as is known."""
        if node_id == self._always_alive:
            return True
        return self._store.get(ALIVE + node_id) is not None and self.has(node_id)

    def ids(self) -> list[str]:
        """Return the ids of all nodes, also of those whose records cannot be read."""
        return node_ids(self._store)

    def has(self, node_id: str) -> bool:
        """Return whether the cluster has a node of that id, dead or alive."""
        return self._store.get(NODES + node_id) is not None

    def lease_of(self, node_id: str) -> int:
        """Return the lease of the node of that id, 0 if it has none."""
        alive = self._store.get(ALIVE + node_id)
        return alive.lease if alive else 0

    def record(self, node_id: str) -> NodeRecord | None:
        """Return the record of the node of that id, None if there is none."""
        return readable(self._store.get(NODES + node_id), NodeRecord)

    def name_of(self, node_id: str) -> str:
        """Return a node's name, also of one that was removed; else its id."""
        record = self.record(node_id)
        former = self._store.get(FORMER_NODES + node_id)
        return record.name if record else owner_of(former) or node_id

    def find(self, name_or_id: str) -> NodeView:
        """
        Return one node.

        Raises:
            NodeNotFoundError: there is none; the hint lists the nodes that exist.

        """
        nodes = self.all()
        # Ids first: a name may look like an id, but nobody can choose their id.
        for each in nodes:
            if each.record.id == name_or_id:
                return each
        for each in nodes:
            if each.record.name == name_or_id:
                return each
        names = [each.record.name for each in nodes]
        more = f" and {len(names) - _NAMED_MAX} more" if len(names) > _NAMED_MAX else ""
        raise NodeNotFoundError(
            f"there is no node '{name_or_id}'",
            hint=f"the nodes are: {', '.join(names[:_NAMED_MAX]) or 'none'}{more}",
        )

    def set_drained(self, name_or_id: str, *, drained: bool) -> NodeView:
        """
        Return the node after it got, or lost, the mark that it takes nothing new.

        Raises:
            NodeNotFoundError: there is no such node.
            StoreError: the store did not answer, or others keep changing the record.

        """
        self._store.refresh(_REFRESH_DEADLINE_S)
        return attempted(lambda: self._set_drained(name_or_id, drained=drained))

    def id_of(self, name_or_id: str) -> str:
        """
        Return a node's id; by its id, also of one whose record cannot be read.

        Raises:
            NodeNotFoundError: there is no such node.

        """
        if self.has(name_or_id):
            return name_or_id
        return self.find(name_or_id).record.id

    def remove(self, name_or_id: str, *, force: bool) -> str:
        """
        Remove a node that does not live from the cluster; return the name it had.

        With *force* it may have data that no other node has.

        Raises:
            NodeConflictError: it lives, or has such data.
            NodeNotFoundError: there is no such node.
            StoreError: the store did not answer, or others keep changing the record.

        """
        self._store.refresh(_REFRESH_DEADLINE_S)
        return attempted(lambda: self._remove(name_or_id, force=force))

    def _remove(self, name_or_id: str, *, force: bool) -> str:
        node_id = self.id_of(name_or_id)
        record = self.record(node_id)
        taken = [
            each for each in self._store.prefix(NAMES)[0] if owner_of(each) == node_id
        ]
        names = [record.name] if record else [each.key[len(NAMES) :] for each in taken]
        name = names[0] if names else node_id
        if node_id == self._always_alive or self._store.get(ALIVE + node_id):
            raise NodeConflictError(
                f"node '{name}' is alive",
                hint="stop its daemon first (systemctl stop remora, there)",
            )
        lost = {} if force else self._data_only_on(node_id)
        if lost:
            raise NodeConflictError(
                f"node '{name}' has data that no other node has: "
                + "; ".join(f"{part} {_named(ids)}" for part, ids in lost.items()),
                hint="start it, and let others catch up; or, if it is gone for good, "
                "start the containers elsewhere where others have copies, and give up "
                "what is still listed then with --force",
            )
        outcome = self._store.transact(
            [
                Compare(NODES + node_id, self._revision(node_id)),
                Compare(ALIVE + node_id, 0),
                *(Compare(each.key, each.mod_revision) for each in taken),
            ],
            [
                Delete(NODES + node_id),
                Put(FORMER_NODES + node_id, name.encode()),
                *QuarantineRecords(self._store).drops(node_id),
                *self.snapshots.drops(node_id),
                *(Delete(each.key) for each in taken),
            ],
        )
        if not outcome.succeeded:
            raise _changed(name_or_id)
        with self._lock:
            self._offsets_s.pop(node_id, None)
        log.info("node removed", extra=fields(node=name, node_id=node_id))
        return name

    def note_clock(self, node_id: str, offset_s: float) -> None:
        """Keep by how much the wall clock of a node is ahead of ours."""
        record = self.record(node_id)
        if record is None:
            return
        with self._lock:
            before_s = self._offsets_s.get(node_id)
            self._offsets_s[node_id] = offset_s
        warned = bool(
            NodeView(record, alive=True, clock_offset_s=before_s).clock_warning()
        )
        warning = NodeView(record, alive=True, clock_offset_s=offset_s).clock_warning()
        if warning and not warned:
            log.warning("%s", warning)
        elif warned and not warning:
            log.info("the clock of node '%s' is right again", record.name)

    def clock_warnings(self) -> list[str]:
        """Return a line for each node that lives and whose clock is far off."""
        found = [each.clock_warning() for each in self.all() if each.alive]
        return [each for each in found if each]

    def _set_drained(self, name_or_id: str, *, drained: bool) -> NodeView:
        """Return the node with, or without, the mark; fields unknown to us stay."""
        view = self.find(name_or_id)
        if view.record.drained == drained:
            return view
        stored = self._store.get(NODES + view.record.id)
        if stored is None:
            raise _changed(name_or_id)
        values = from_json(stored.value, dict[str, Any])
        values["drained"] = drained
        if not self._store.transact(
            [Compare(stored.key, stored.mod_revision)],
            [Put(stored.key, msgspec.json.encode(values))],
        ).succeeded:
            raise _changed(name_or_id)
        log.info(
            "node %s",
            "drained" if drained else "undrained",
            extra=fields(node=view.record.name),
        )
        return self.find(view.record.id)

    def _revision(self, node_id: str) -> int:
        stored = self._store.get(NODES + node_id)
        return stored.mod_revision if stored else 0


def _named(volumes: list[str]) -> str:
    more = len(volumes) - _VOLUMES_NAMED_MAX
    shown = ", ".join(volumes[:_VOLUMES_NAMED_MAX])
    return f"{shown} and {more} more" if more > 0 else shown


def _changed(name: str) -> ChangedError:
    return ChangedError(f"node '{name}' was changed meanwhile", hint="retry")
