"""
Labels of a swarm's nodes tell where the cluster's volumes are.

`remora.volume.NAME` is `owner` on the node that has the volume or had it last,
`replica` on the others that keep a copy, and `none` on the rest of the cluster. So one
constraint (`!= none`) means all nodes with a copy, and every node while there is none.

Each daemon publishes which node of the swarm its own engine is, under
`swarm/<node id>`; the one beside the swarm's leader writes what differs.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from backends.errors import RemoraError
from plugin.engine.engine_api import EngineApi
from plugin.errors import EngineError
from plugin.limits import SWARM_INTERVAL_S, SWARM_RETRY_S, SWARM_VOLUMES_MAX
from plugin.logs import fields
from plugin.membership.directory import NodeDirectory
from plugin.model import VolumeRecord
from plugin.ownership.heads import Heads
from plugin.ownership.state import Head
from plugin.store.base import Compare, Delete, Put, Store

log = logging.getLogger(__name__)
PREFIX: Final = "remora.volume."
# The engine's answers about the swarm come from its leader, wherever that is.
ENGINE_CALL_S: Final = 15.0
_NODES: Final = "swarm/"
_STOP_WAIT_S: Final = 2.0


def labels_of(node_id: str, volumes: Iterable[tuple[str, Head]]) -> dict[str, str]:
    """Return the labels that tell what the node has of *volumes*, by their names."""
    found = {}
    for name, head in volumes:
        # Who came to own it and gave up is no member: it has nothing of it.
        gave_up = head.phase == "idle" and node_id not in head.members
        if node_id == head.owner and not gave_up:
            found[PREFIX + name] = "owner"
        elif node_id in head.members:
            found[PREFIX + name] = "replica"
        else:
            found[PREFIX + name] = "none"
    return found


def with_labels(spec: Mapping[str, Any], ours: Mapping[str, str]) -> dict[str, Any]:
    """Return a node's *spec* with *ours* in place of the labels that we set before."""
    others = {
        key: value
        for key, value in (spec.get("Labels") or {}).items()
        if not key.startswith(PREFIX)
    }
    return {**spec, "Labels": {**others, **ours}}


class SwarmLabels:
    """
    See the module's text.

    *records* are the volumes that nodes have copies of; *driver* is the plugin's name
    for the engine.
    """

    def __init__(
        self,
        engine: EngineApi,
        *,
        store: Store,
        heads: Heads,
        nodes: NodeDirectory,
        own_id: str,
        records: Callable[[], Sequence[VolumeRecord]],
        driver: str,
    ) -> None:
        self._engine = engine
        self._store = store
        self._heads = heads
        self._nodes = nodes
        self._own_id = own_id
        self._records = records
        self._driver = driver
        self._fault = ""
        self._stopping = threading.Event()
        self._thread = threading.Thread(
            target=self._run, name="swarm-labels", daemon=True
        )

    def start(self) -> None:
        """Begin with a first round at once."""
        self._thread.start()

    def stop(self) -> None:
        """Begin no round any more; wait a little for one under way."""
        self._stopping.set()
        self._thread.join(_STOP_WAIT_S)

    def run_once(self) -> None:
        """
        Do one round.

        Raises:
            EngineError: the engine does not answer, or is in no swarm.
            StoreError: the cluster's records are not known.

        """
        info = self._engine.call("GET", "/info")
        swarm = info["Swarm"]
        if swarm["LocalNodeState"] != "active":
            raise EngineError("this engine is in no swarm")
        self._introduce(info)
        self._publish(swarm["NodeID"])
        if not swarm["ControlAvailable"]:
            return
        nodes = self._engine.call("GET", "/nodes")
        if any(
            each["ID"] == swarm["NodeID"] and each["ManagerStatus"].get("Leader")
            for each in nodes
            if "ManagerStatus" in each
        ):
            self._write(nodes)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.run_once()
            except (RemoraError, LookupError, TypeError) as error:
                # LookupError, TypeError: the answer has another form than Docker's.
                self._note(str(error) or "unknown answer")
                self._stopping.wait(SWARM_RETRY_S)
            except Exception:
                log.exception("labels of the swarm's nodes failed")
                self._stopping.wait(SWARM_RETRY_S)
            else:
                self._note("")
                self._stopping.wait(SWARM_INTERVAL_S)

    def _note(self, fault: str) -> None:
        if fault and fault != self._fault:
            log.warning("labels of the swarm's nodes are not kept: %s", fault)
        elif self._fault and not fault:
            log.info("labels of the swarm's nodes are kept again")
        self._fault = fault

    def _introduce(self, info: Mapping[str, Any]) -> None:
        """
        Let the engine meet the plugin, if it has not yet.

        Swarm gives tasks only to nodes whose engine knows the plugin, and an engine
        looks for a plugin when it is first asked for one of its volumes.
        """
        if self._driver not in (info["Plugins"]["Volume"] or ()):
            self._engine.call("GET", "/volumes")

    def _publish(self, swarm_id: str) -> None:
        """Let the others know which node of the swarm this one is."""
        key = _NODES + self._own_id
        stored = self._store.get(key)
        value = swarm_id.encode()
        if (stored and stored.value == value) or not self._nodes.record(self._own_id):
            return
        revision = stored.mod_revision if stored else 0
        self._store.transact([Compare(key, revision)], [Put(key, value)])

    def _write(self, nodes: Sequence[Mapping[str, Any]]) -> None:
        """Write the labels of each node whose labels differ."""
        ids, volumes = self._members(), self._volumes()
        for node in nodes:
            spec = node["Spec"]
            known = ids.get(node["ID"])
            wanted = with_labels(spec, labels_of(known, volumes) if known else {})
            if wanted["Labels"] == (spec.get("Labels") or {}):
                continue
            version = int(node["Version"]["Index"])
            try:
                self._engine.call(
                    "POST", f"/nodes/{node['ID']}/update?version={version}", wanted
                )
            except EngineError as error:
                # Somebody else has changed the node meanwhile: the next round sees it.
                log.info("a node's labels follow later: %s", error)
            else:
                name = node["Description"].get("Hostname", "")
                log.info("labels written", extra=fields(swarm_node=name))

    def _members(self) -> dict[str, str]:
        """Return the cluster's node ids by their ids in the swarm."""
        there = {each.record.id for each in self._nodes.all()}
        found = {}
        for stored in self._store.prefix(_NODES)[0]:
            node_id = stored.key.removeprefix(_NODES)
            if node_id in there:
                found[stored.value.decode(errors="replace")] = node_id
            else:
                self._store.transact(
                    [Compare(stored.key, stored.mod_revision)], [Delete(stored.key)]
                )
        return found

    def _volumes(self) -> list[tuple[str, Head]]:
        """Return the volumes that have copies, and how they stand."""
        found = []
        for record in self._records()[:SWARM_VOLUMES_MAX]:
            head = self._heads.head(record.id)
            if head is not None and head.members:
                found.append((record.name, head))
        return found
