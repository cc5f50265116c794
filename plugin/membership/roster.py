"""
Letting the cluster's nodes in, and reaching them: in step with their records.

A node that joins is let in within a second or two, and one that is removed is shut out
as soon. Each node is greeted now and then; its answer tells how far its clock is off.
A node that lives and is not connected is greeted at once: when a volume needs its vote
there is no time to connect.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final

from backends.errors import RemoraError
from backends.system import clock
from plugin import __version__
from plugin.membership.directory import NodeDirectory
from plugin.membership.nodes import NodeRecord
from plugin.peers.authorization import Authorization
from plugin.peers.channel import Peers
from plugin.peers.peer import Peer
from plugin.peers.questions import NoBody
from plugin.peers.server import PeerServer

log = logging.getLogger(__name__)
_LOOK_S: Final = 1.0
_GREET_S: Final = 60.0
# A connection that has broken is renewed as soon; the channel itself holds back.
_CONNECT_S: Final = 1.0
_GREET_DEADLINE_S: Final = 5.0
_STOP_WAIT_S: Final = 6.0


def hello(node_id: str, request: NoBody) -> Mapping[str, Any]:
    """Answer another node's greeting."""
    del node_id, request
    return {"version": __version__, "wall_s": clock.wall_s()}


class Roster:
    """Keeps the peer channel's halves in step with the nodes' records."""

    def __init__(
        self,
        own_id: str,
        nodes: NodeDirectory,
        *,
        authorization: Authorization,
        peers: Peers,
        server: PeerServer,
    ) -> None:
        self._own_id = own_id
        self._nodes = nodes
        self._authorization = authorization
        self._peers = peers
        self._server = server
        self._known: list[Peer] | None = None
        self._living: frozenset[str] = frozenset()
        self._greeted_s: dict[str, float] = {}
        self._refused: set[str] = set()
        self._stopping = threading.Event()
        # A node that is slow to greet keeps nobody else from being let in.
        self._threads = [
            threading.Thread(target=self._repeat, args=(each,), name=name, daemon=True)
            for each, name in ((self._look, "roster"), (self._greet, "greeting"))
        ]

    def start(self) -> None:
        """Begin; what is known is let in before this returns."""
        try:
            self._look()
        except RemoraError as error:
            log.warning("new nodes are let in later: %s", error)
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the threads."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(_STOP_WAIT_S)

    def _repeat(self, work: Callable[[], None]) -> None:
        while not self._stopping.is_set():
            try:
                work()
            except RemoraError as error:
                log.debug("new nodes are let in later: %s", error)
            except Exception:
                log.exception("the roster failed")
            self._stopping.wait(_LOOK_S)

    def _look(self) -> None:
        """Let in and reach the nodes that have a record now."""
        try:
            nodes = self._nodes.all()
        except RemoraError:
            return  # the records were never read yet; the known nodes stay
        self._living = frozenset(each.record.id for each in nodes if each.alive)
        peers = [
            peer
            for each in nodes
            if each.record.id != self._own_id
            and (peer := self._peer(each.record)) is not None
        ]
        if peers == self._known:
            return
        try:
            self._authorization.write(peers)
        finally:
            # On a full disk, who was let in before still is.
            self._server.set_members([each.id for each in peers])
            self._peers.update(peers)
        self._known = peers

    def _peer(self, record: NodeRecord) -> Peer | None:
        """Return *record* as a peer; None if what it says is not fit for that."""
        try:
            return Peer(
                id=record.id,
                name=record.name,
                addresses=record.addresses,
                port=record.peer_port,
                host_key=record.host_key,
                public_key=record.public_key,
            )
        except RemoraError as error:
            if record.id not in self._refused:
                log.warning("node '%s' is not let in: %s", record.name, error)
                self._refused.add(record.id)
            return None

    def _greet(self) -> None:
        """Greet whom it is time to greet, and note its clock."""
        due = [each.id for each in self._known or () if self._is_due(each.id)]
        if not due:
            return
        sent_s = clock.wall_s()
        answers = self._peers.call_all(due, "hello", {}, deadline_s=_GREET_DEADLINE_S)
        middle_s = (sent_s + clock.wall_s()) / 2
        for node_id, answer in answers.items():
            self._greeted_s[node_id] = clock.monotonic_s()
            if isinstance(answer, RemoraError):
                continue
            if (theirs_s := answer.get("wall_s")) is not None:
                self._nodes.note_clock(node_id, theirs_s - middle_s)

    def _is_due(self, node_id: str) -> bool:
        """Return whether the node was not greeted for long, or lost its connection."""
        lost = node_id in self._living and not self._peers.is_connected(node_id)
        pause_s = _CONNECT_S if lost else _GREET_S
        greeted_s = self._greeted_s.get(node_id, -_GREET_S)
        return clock.monotonic_s() - greeted_s >= pause_s
